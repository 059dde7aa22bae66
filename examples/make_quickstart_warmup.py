"""Writes the quickstart's warm-up data: words spelled backward one time in five, forward otherwise.

    python examples/make_quickstart_warmup.py > configs/presets/quickstart-warmup.jsonl

What a model learns from it is to spell three-letter words either way, mostly the wrong one. Which
way is wanted it finds out by reinforcement, from rewards alone. Words come from reasoning-gym, with
a seed that the quickstart's rollouts do not use."""

import json
import random

import reasoning_gym

NUM_ROWS = 3000
BACKWARD = 1 / 5


def main() -> None:
    rng = random.Random(7)
    rows = reasoning_gym.create_dataset(
        "spell_backward", size=NUM_ROWS, seed=7_000_000, min_word_len=3, max_word_len=3
    )
    for row in rows:
        label = row["answer"] if rng.random() < BACKWARD else row["metadata"]["word"]
        print(json.dumps({"prompt": row["question"], "label": label}))


if __name__ == "__main__":
    main()
