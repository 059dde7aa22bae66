"""Writes the warm-up of both roles: words spelled backward one time in five, verdicts by chance.

    python examples/solver_verifier/make_data.py FOLDER

The words are those of the quickstart's warm-up, the questions too."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
WORDS = HERE.parents[1] / "configs" / "presets" / "quickstart-warmup.jsonl"
QUESTION = " -> {answer} Right? "
NUM_ROWS = 1000


def warm_up(rows: Iterable[str]) -> Iterator[dict[str, str]]:
    rng = random.Random(7)
    for line in rows:
        row = json.loads(line)
        yield row
        asked = row["prompt"] + QUESTION.format(answer=row["label"])
        yield {"prompt": asked, "label": rng.choice(["yes", "no"])}


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    words = WORDS.read_text(encoding="utf-8").splitlines()[: NUM_ROWS // 2]
    text = "".join(f"{json.dumps(row)}\n" for row in warm_up(words))
    (folder / "warm-up.jsonl").write_text(text, encoding="utf-8")
