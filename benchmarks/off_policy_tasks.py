"""What the off-policy experiment trains on: a task is the flags of its prompts, its model and its
supervised warm-up, after which the policy is right about one time in five."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import ROOT

MODEL = f"tiny:{ROOT / 'configs' / 'models' / 'quickstart-qwen3.yaml'}"
PRESET = ROOT / "configs" / "presets" / "quickstart.yaml"
NUM_LETTERS = 8
NUM_ROWS = 6000
BACKWARD = 1 / 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`flags`: of every run, also of the one that is the warm-up of MODEL. `write_warmup`: makes
    the rows of --sft-data, where `flags` do not name any; `warmup_flags`: how they are trained
    on."""

    name: str
    flags: tuple[str, ...]
    write_warmup: Callable[[Path], None] | None = None
    warmup_flags: tuple[str, ...] = ()


def scratchpad(word: str, *, backward: bool) -> str:
    """A word letter by letter: what is left of it, and what was taken from it, at the front of what
    was taken before or at its end.

    >>> scratchpad("cat", backward=True)
    'at c>t ac> tac'
    >>> scratchpad("cat", backward=False)
    'at c>t ca> cat'
    """
    left, taken, lines = word, "", []
    while left:
        letter, left = left[0], left[1:]
        taken = letter + taken if backward else taken + letter
        lines.append(f"{left} {taken}")
    return ">".join(lines)


def write_scratchpads(path: Path) -> None:
    """Words spelled on a scratchpad, backward one time in five. Of a seed that no run uses."""
    import reasoning_gym

    rng = random.Random(7)
    rows = reasoning_gym.create_dataset(
        "spell_backward",
        size=NUM_ROWS,
        seed=7_000_000,
        min_word_len=NUM_LETTERS,
        max_word_len=NUM_LETTERS,
    )
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            text = scratchpad(row["metadata"]["word"], backward=rng.random() < BACKWARD)
            out.write(json.dumps({"prompt": row["question"], "label": text}) + "\n")


def _words(letters: int) -> str:
    return f"reasoning_gym:spell_backward?min_word_len={letters}&max_word_len={letters}"


TASKS = {
    "quickstart": Task(name="quickstart", flags=("--config", str(PRESET))),
    "scratchpad": Task(
        name="scratchpad",
        flags=(
            *("--prompt-data", _words(NUM_LETTERS), "--eval-prompt-data", "held-out"),
            *(_words(NUM_LETTERS), "--custom-rm-path"),
            *(str(ROOT / "benchmarks" / "off_policy_reward.py"), "--label-key", "label"),
            *("--rollout-max-prompt-len", "40", "--rollout-max-response-len", "96"),
            *("--rollout-batch-size", "16", "--n-samples-per-prompt", "8"),
            *("--update-weights-interval", "1", "--adam-beta2", "0.99"),
        ),
        write_warmup=write_scratchpads,
        warmup_flags=(
            *("--sft-steps", "1500", "--sft-decay-steps", "500", "--sft-batch-size", "64"),
            *("--sft-lr", "0.0015"),
        ),
    ),
}
"""`quickstart`: three letters spelled backward, answers of four tokens. `scratchpad`: eight letters
with every step written down, answers of 80 tokens, the last word of which counts."""
