"""Rules about what is evaluated on."""

from __future__ import annotations

from collections.abc import Iterator

from configs.rules.inputs import check_data, is_data
from configs.schema import Config


def evaluation(config: Config) -> Iterator[str]:
    words, interval = config.eval.eval_prompt_data, config.eval.eval_interval
    if interval and not words:
        yield (
            f"--eval-interval {interval} without --eval-prompt-data: there is nothing to evaluate"
            " on. Add --eval-prompt-data NAME PATH"
        )
    if len(words) > 1 and len(words) % 2:
        yield (
            f"--eval-prompt-data {' '.join(words)}: expected pairs NAME PATH NAME PATH ..., or one"
            f" PATH; got {len(words)} words"
        )
    names = words[::2] if len(words) > 1 else ()
    if repeated := {name for name in names if names.count(name) > 1}:
        yield (
            f"--eval-prompt-data {' '.join(words)}: {min(repeated)} twice; its results would be"
            " mixed up. Use different names"
        )
    if files := [name for name in names if is_data(name)]:
        yield (
            f"--eval-prompt-data {' '.join(words)}: {files[0]} stands where a name belongs;"
            " expected pairs NAME PATH NAME PATH ..., e.g. aime aime.jsonl"
        )
    for path in words if len(words) == 1 else words[1::2]:
        yield from check_data("--eval-prompt-data", path)
