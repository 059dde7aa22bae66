"""A text environment of up to 13 turns: the model guesses a number, and is told each time whether
it is higher or lower. The sooner it is found, the better.

    python train_async.py --config examples/guess_the_number/preset.yaml --mock --num-rollout 5

Without --mock a model of a million parameters plays, on two CPU cores, whose warm-up has taught it
to guess at random."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from slipstream import Sample, open_session

MAX_GUESSES = 13  # as --max-turns of the preset
HINT = "a number: "  # for what is none


class Game:
    """What the environment knows. `guesses`: all that were made, what was no number as None."""

    def __init__(self, secret: int) -> None:
        self.secret = secret
        self.guesses: list[int | None] = []

    @property
    def found(self) -> bool:
        return self.guesses[-1:] == [self.secret]

    def step(self, said: str) -> str:
        """Takes a guess; what the model reads next."""
        number = re.search(r"\d+", said)
        guess = int(number[0][:9]) if number else None
        self.guesses.append(guess)
        if guess is None:
            return HINT
        return "lower: " if guess > self.secret else "higher: "

    @property
    def reward(self) -> float:
        """1 for the first guess, 1/13 for the thirteenth, 0 for none."""
        return max(1 - (len(self.guesses) - 1) / MAX_GUESSES, 0.0) if self.found else 0.0


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> Sample:
    """Turns of the model and of the game, until the number is found or no turn is left."""
    game = Game(int(str(sample.label)))
    async with open_session(args, sample, sampling_params) as session:
        while not session.done:
            turn = await session.generate()
            answer = game.step(turn.text)
            if game.found or not session.append_tool(answer):
                break
    sample.metadata |= {"guesses": game.guesses, "found": game.found, "reward": game.reward}
    return sample


async def reward_func(args: Any, sample: Sample, **_: Any) -> float:
    return float(sample.metadata["reward"])
