"""Writes prompts with images: squares of one colour, slightly noisy, as PNG data-URLs. `python
examples/colours/make_data.py OUT.jsonl`

With --multimodal-keys '{"image": "image"}' a row is a prompt (<image> says where the picture goes),
its image and its label."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from slipstream import to_data_url

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 190, 60),
    "blue": (30, 60, 220),
    "yellow": (230, 220, 40),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
}


def make_row(rng: random.Random, side: int = 32) -> dict[str, str]:
    name = rng.choice(list(COLOURS))
    shade = tuple(min(255, max(0, c + rng.randint(-15, 15))) for c in COLOURS[name])
    picture = Image.new("RGB", (side, side), shade)
    return {
        "prompt": "<image>What colour is the image?",
        "image": to_data_url(picture),
        "label": name,
    }


def main(out: Path, count: int = 256, seed: int = 0) -> None:
    rng = random.Random(seed)
    out.write_text(
        "".join(json.dumps(make_row(rng)) + "\n" for _ in range(count)), encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
