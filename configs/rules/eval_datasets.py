"""What is evaluated on, and how each data set differs from the flags: from --eval-prompt-data, or
from the YAML file of --eval-config, in slime's format.

    eval:                       # may be left out
      defaults: {max_response_len: 16384, top_p: 0.7}
      datasets:                 # a list, or a mapping from names
        - {name: aime, path: aime.jsonl, rm_type: deepscaler, n_samples_per_eval_prompt: 16}"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.flags import own_flags, parse_value, words_of
from configs.rules.ranges import RANGES
from configs.schema import Config, DataConfig, RewardConfig, RolloutConfig
from pipeline.core.errors import ConfigError
from pipeline.core.own_files import locate

# a key of a data set -> the flag whose values it takes
_AS_FLAGS = {
    "path": "prompt-data",
    "rm_type": "rm-type",
    "custom_rm_path": "custom-rm-path",
    "custom_generate_function_path": "custom-generate-function-path",
    "input_key": "input-key",
    "label_key": "label-key",
    "tool_key": "tool-key",
    "metadata_key": "metadata-key",
    "apply_chat_template": "apply-chat-template",
    "n_samples_per_eval_prompt": "n-samples-per-eval-prompt",
    "temperature": "eval-temperature",
    "top_p": "eval-top-p",
    "top_k": "eval-top-k",
    "max_response_len": "eval-max-response-len",
    "min_new_tokens": "eval-min-new-tokens",
    "stop": "rollout-stop",
    "stop_token_ids": "rollout-stop-token-ids",
    "skip_special_tokens": "rollout-skip-special-tokens",
}
_OWN: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str) and bool(v), "text"),
    "repetition_penalty": (lambda v: isinstance(v, int | float) and v > 0, "a number above 0"),
    "no_stop_trim": (lambda v: isinstance(v, bool), "true or false"),
    "multimodal_keys": (lambda v: isinstance(v, dict), "a mapping"),
    "apply_chat_template_kwargs": (lambda v: isinstance(v, dict), "a mapping"),
    "metadata_overrides": (lambda v: isinstance(v, dict), "a mapping"),
}
_ALIASES = {"n_samples": "n_samples_per_eval_prompt"}
KEYS = frozenset((*_AS_FLAGS, *_OWN, *_ALIASES))
_ABSENT = {
    "min_eval_samples": "every sample is waited for; failed ones are counted in num_failed",
    "eval_task_timeout": "--eval-episode-timeout-seconds bounds every sample",
    "eval_early_stop_remaining": "every sample is waited for (--eval-episode-timeout-seconds)",
    "eval_early_stop_idle_timeout": "every sample is waited for (--eval-episode-timeout-seconds)",
    "app_service": "custom_generate_function_path can ask a server of yours",
    "message_processor": "--data-source-path and hooks of yours prepare prompts",
    "reward_model": "custom_rm_path, or rm_type remote_rm, can ask one of yours",
    "remote_environment": "custom_generate_function_path can ask one of yours",
}
# what an engine is asked for by these keys
_SAMPLING = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_new_tokens")},
    **{name: name for name in ("stop", "stop_token_ids", "skip_special_tokens", "no_stop_trim")},
    "repetition_penalty": "repetition_penalty",
    "max_response_len": "max_new_tokens",
}
_DATA = ("input_key", "label_key", "tool_key", "metadata_key", "apply_chat_template")
_JSON = ("multimodal_keys", "apply_chat_template_kwargs")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalDataset:
    """One data set, with the settings that hold for it."""

    name: str
    path: str
    flag: str  # that names it, for messages
    data: DataConfig
    reward: RewardConfig
    num_samples: int  # of every prompt
    # SGLang's sampling parameters, where they are not those of the --eval-* flags
    sampling: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)  # over that of every row
    generate_function_path: str | None = None

    def as_rollout(self, config: Config) -> RolloutConfig:
        """How long its requests are."""
        flags = config.eval.as_rollout(config.rollout)
        longest = self.sampling.get("max_new_tokens", flags.rollout_max_response_len)
        return replace(flags, rollout_max_response_len=longest)


def eval_datasets(config: Config) -> tuple[EvalDataset, ...]:
    """In the order in which they are evaluated. Raises ConfigError for a file that is not as it
    should be; the data are not read."""
    file, words = config.eval.eval_config, config.eval.eval_prompt_data
    if file is not None:
        return tuple(_from_file(config, Path(file)))
    pairs = [("eval", words[0])] if len(words) == 1 else zip(words[::2], words[1::2], strict=False)
    return tuple(_dataset(config, "--eval-prompt-data", name, path, {}) for name, path in pairs)


def _from_file(config: Config, file: Path) -> Iterator[EvalDataset]:
    where = f"--eval-config {file}"
    content = _read(file, where)
    inner = content.get("eval", content)
    if not isinstance(inner, dict):
        raise ConfigError(f"{where}: `eval` is {inner!r:.60}; expected a mapping with `datasets`")
    if unknown := set(inner) - {"defaults", "datasets"}:
        raise ConfigError(f"{where}: unknown {min(unknown)!r}; expected `defaults` and `datasets`")
    defaults = _checked(inner.get("defaults") or {}, f"{where}: defaults")
    for name, given in _entries(inner.get("datasets"), where):
        values = {**defaults, **_checked(given, f"{where}: data set {name}")}
        if "path" not in values:
            raise ConfigError(f"{where}: data set {name} has no path; expected a data file")
        yield _dataset(config, where, str(name), values["path"], values)


def _entries(given: Any, where: str) -> Iterator[tuple[Any, Any]]:
    """(name, keys) of a list of entries with names, or of a mapping from names."""
    if isinstance(given, dict) and given:
        for name, keys in given.items():
            own = keys or {}
            yield own.get("name", name) if isinstance(own, dict) else name, own
        return
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{where}: no `datasets`; expected a list of {{name: ..., path: ...}}")
    for number, keys in enumerate(given, 1):
        if not isinstance(keys, dict) or "name" not in keys:
            raise ConfigError(f"{where}: data set {number} has no name; expected name and path")
        yield keys["name"], keys


def _read(file: Path, where: str) -> dict[str, Any]:
    import yaml  # only runs with such a file pay for it

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}; expected a YAML file") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected a mapping with `datasets`")
    return content


def _checked(given: Any, where: str) -> dict[str, Any]:
    """Key -> value, each as its flag would read it."""
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: {given!r:.60}; expected a mapping")
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = _ALIASES.get(str(key), str(key))
        if name in _ABSENT:
            raise ConfigError(f"{where}: {key} is not there: {_ABSENT[name]}")
        if name not in KEYS:
            known = ", ".join(sorted(KEYS))
            raise ConfigError(f"{where}: unknown {key!r}; expected some of {known}")
        read = _value(name, value, f"{where}: {key} {' '.join(words_of(value))}")
        if read is not None:  # null: as if it were not said
            values[name] = read
    return values


def _value(name: str, value: Any, where: str) -> Any:
    if value is None:
        return None
    if "${" in str(value):
        raise ConfigError(f"{where}: ${{...}} is not filled in; write the value itself")
    if name in _OWN:
        fits, expected = _OWN[name]
    else:
        flag = own_flags()[_AS_FLAGS[name]]
        try:
            value = parse_value(flag, words_of(value))
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        fits, expected = RANGES.get(flag.field, (lambda _: True, ""))
    if value is not None and not fits(value):
        raise ConfigError(f"{where}: expected {expected}")
    return locate(value) if name == "path" else value


def _dataset(
    config: Config, flag: str, name: str, path: str, values: Mapping[str, Any]
) -> EvalDataset:
    asked = config.eval
    keys = {
        "input_key": asked.eval_input_key,
        "label_key": asked.eval_label_key,
        "tool_key": asked.eval_tool_key,
        **{key: values[key] for key in _DATA if key in values},
        **{key: json.dumps(values[key]) for key in _JSON if key in values},
    }
    given: dict[str, Any] = {key: value for key, value in keys.items() if value is not None}
    rm_type = {"rm_type": values["rm_type"]} if "rm_type" in values else {}
    return EvalDataset(
        name=name,
        path=path,
        flag=flag,
        data=replace(config.data, **given),
        reward=_reward(config, values),
        num_samples=values.get("n_samples_per_eval_prompt", asked.n_samples_per_eval_prompt),
        sampling={_SAMPLING[key]: _plain(values[key]) for key in _SAMPLING if key in values},
        metadata={**rm_type, **values.get("metadata_overrides", {})},
        generate_function_path=values.get("custom_generate_function_path"),
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _reward(config: Config, values: Mapping[str, Any]) -> RewardConfig:
    """A data set's own scorer goes before the flags', its own function before its rm_type."""
    base = replace(
        config.reward, reward_key=config.eval.eval_reward_key or config.reward.reward_key
    )
    if "custom_rm_path" in values:
        return replace(base, custom_rm_path=values["custom_rm_path"], rm_type=None, group_rm=False)
    if "rm_type" in values:
        return replace(base, custom_rm_path=None, rm_type=values["rm_type"], group_rm=False)
    return base
