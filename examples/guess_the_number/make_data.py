"""Writes the game's data: a row for every secret number, and a warm-up that shows how it is played.

    python examples/guess_the_number/make_data.py FOLDER

In warm-up.jsonl one guess in two is any number, and one in two a number that can still be the
secret one. That the second kind is better, and which of those is best, is left to reinforcement."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
LOWEST, HIGHEST = 1, 30
QUESTION = f"Guess a number from {LOWEST:02} to {HIGHEST:02}: "
END = "<|im_end|>"  # which the tiny model ends its turns with
NUM_ROWS = 2000  # fewer are learned by heart
MAX_GUESSES_BEFORE = 8


def secrets() -> Iterable[dict[str, str]]:
    return ({"prompt": QUESTION, "label": f"{n:02}"} for n in range(LOWEST, HIGHEST + 1))


def warm_up() -> Iterable[dict[str, str]]:
    rng = random.Random(7)
    for _ in range(NUM_ROWS):
        secret, prompt = rng.randint(LOWEST, HIGHEST), QUESTION
        low, high = LOWEST, HIGHEST
        for _ in range(rng.randint(0, MAX_GUESSES_BEFORE)):
            guess = any_or_possible(rng, low, high)
            if guess == secret:
                break
            prompt += f"{guess:02}{END}{'lower' if guess > secret else 'higher'}: "
            low = max(low, guess + 1) if guess < secret else low
            high = min(high, guess - 1) if guess > secret else high
        yield {"prompt": prompt, "label": f"{any_or_possible(rng, low, high):02}"}


def any_or_possible(rng: random.Random, low: int, high: int) -> int:
    """A number; one time in two, one from `low` to `high`."""
    return rng.randint(low, high) if rng.random() < 0.5 else rng.randint(LOWEST, HIGHEST)


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "secrets.jsonl", secrets())
    write(folder / "warm-up.jsonl", warm_up())
