"""Where a flag that was left out means something else in slime: said to those who come from
there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from configs.flags import own_flags, words_of
from configs.hooks import HOOKS
from configs.rules.user_source import source_text
from configs.schema import Config
from configs.schema.optim import OPTIMIZER_DEFAULTS

# Flags whose absence changes what a script trains on, or how, with what slime takes then.
SLIMES: Mapping[str, str] = {
    "input-key": "input",
    "rollout-shuffle": "off",
    "rollout-skip-special-tokens": "off",
    "n-samples-per-prompt": "1",
    "actor-num-gpus-per-node": "8",
    "lr-decay-style": "linear",
    "weight-decay": "0.01",
}
_NO_GROUPS = "n-samples-per-prompt"  # 1 in slime and here, where answers are given
_IMPORTS_SLIME = re.compile(r"^\s*(from|import)\s+slime\b", re.MULTILINE)


def differing_defaults(config: Config, given: Collection[str]) -> Iterator[str]:
    """One line, where anything was left out that makes a difference."""
    said = [
        f"--{name} is {_ours(name)} (slime: {theirs})"
        for name, theirs in SLIMES.items()
        if name not in given and not (config.answers_are_given and name == _NO_GROUPS)
    ]
    if config.algorithm.ref_load and config.model.initial_megatron_checkpoint is None:
        said.append("training begins with --hf-checkpoint (slime: with --ref-load)")
    if said:
        yield f"other defaults than slime's: {'; '.join(said)}"


def _ours(name: str) -> str:
    flag = own_flags().get(name)
    default = OPTIMIZER_DEFAULTS[name.replace("-", "_")] if flag is None else flag.default
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(words_of(default))


def imports_slime(config: Config) -> bool:
    """Does a function of the user's come from slime, or say `import slime`?"""
    specs = (spec for hook in HOOKS.values() for spec in hook.paths(config))
    return any(
        spec.startswith("slime.") or _IMPORTS_SLIME.search(source_text(spec))
        for spec in specs
        if spec
    )
