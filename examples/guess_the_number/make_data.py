"""Writes the game's data: a row for every secret number, and a warm-up whose guesses know nothing.

    python examples/guess_the_number/make_data.py FOLDER

What a model learns from warm-up.jsonl is to say a number; every one is as likely, whatever was said
before. What `lower` and `higher` are good for is left to reinforcement."""

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
NUM_ROWS = 1000  # fewer are learned by heart
MAX_GUESSES_BEFORE = 12


def secrets() -> Iterable[dict[str, str]]:
    return ({"prompt": QUESTION, "label": f"{n:02}"} for n in range(LOWEST, HIGHEST + 1))


def warm_up() -> Iterable[dict[str, str]]:
    rng = random.Random(7)
    for _ in range(NUM_ROWS):
        secret, prompt = rng.randint(LOWEST, HIGHEST), QUESTION
        for _ in range(rng.randint(0, MAX_GUESSES_BEFORE)):
            guess = rng.choice([n for n in range(LOWEST, HIGHEST + 1) if n != secret])
            prompt += f"{guess:02}{END}{'lower' if guess > secret else 'higher'}: "
        yield {"prompt": prompt, "label": f"{rng.randint(LOWEST, HIGHEST):02}"}


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "secrets.jsonl", secrets())
    write(folder / "warm-up.jsonl", warm_up())
