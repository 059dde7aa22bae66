"""A text environment: the model guesses a number, and is told whether it is higher or lower.

    python train_async.py ... --environment-path examples/guess_number.py --max-turns 13

The number is the row's label; the fewer guesses it takes, the greater the reward.
"""

from __future__ import annotations

import random
import re
from typing import Any

from slipstream import Sample

MOST = 100


class Environment:
    def __init__(self, args: Any) -> None:
        self.max_turns: int = args.max_turns
        self.number = self.turns = 0

    async def reset(self, sample: Sample) -> str:
        """What the model reads first. The samples of a group get the same number."""
        given = str(sample.label or "")
        same = random.Random(sample.group_index).randint(1, MOST)
        self.number = int(given) if given.isdecimal() else same
        return f"I think of a whole number from 1 to {MOST}. Which one is it?"

    async def step(self, action: str) -> tuple[str, float | None, bool]:
        """(observation, reward, done): 1 for the first guess, down to half of that for the last."""
        self.turns += 1
        said = re.findall(r"\d{1,9}", action)
        if not said:
            return "That is no number. Guess again.", 0.0, False
        guess = int(said[-1])
        if guess == self.number:
            return "Yes!", 1.0 - 0.5 * (self.turns - 1) / max(1, self.max_turns - 1), True
        return ("Higher." if guess < self.number else "Lower.") + " Guess again.", 0.0, False
