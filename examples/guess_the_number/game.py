"""A text environment of up to 13 turns: the model guesses a number, and is told each time whether
it is higher or lower. The sooner it is found, the better.

    python train_async.py --config examples/guess_the_number/preset.yaml

A model of a million parameters plays, on two CPU cores; in the games of its warm-up every second
guess heeds what was said. With a chat model: --prompt-data as here, --environment-path,
--max-turns."""

from __future__ import annotations

import re
from typing import Any

from slipstream import Sample

HINT = "a number: "  # for what is none


class Environment:
    """One game. The number is the row's label."""

    def __init__(self, args: Any) -> None:
        self.max_turns = int(args.max_turns or 1)
        self.secret = 0
        self.guesses: list[int | None] = []

    async def reset(self, sample: Sample) -> None:
        """The model reads the row's prompt. What is guessed is kept with the sample; what was no
        number, as None."""
        self.secret = int(str(sample.label))
        sample.metadata["guesses"] = self.guesses

    async def step(self, action: str) -> tuple[str, float, bool]:
        """(what the model reads next, reward, found?): 1 for the first guess, 1/13 for the
        thirteenth."""
        numbers = re.findall(r"\d+", action)
        guess = int(numbers[-1][:9]) if numbers else None
        self.guesses.append(guess)
        if guess is None:
            return HINT, 0.0, False
        if guess == self.secret:
            return "", 1 - (len(self.guesses) - 1) / self.max_turns, True
        return ("lower: " if guess > self.secret else "higher: "), 0.0, False
