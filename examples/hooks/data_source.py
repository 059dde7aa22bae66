"""Prompts from anywhere: here sums that are made up, each from its own number.

--data-source-path examples/hooks/data_source.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from slipstream import Sample


class RolloutDataSource:
    def __init__(self, args: Any) -> None:
        self.args, self.next = args, 0
        self.returned: list[list[Sample]] = []
        self.folder = Path(args.save or args.runs_dir) / "data_source"

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """`num_samples` groups of n_samples_per_prompt samples each."""
        return [self.returned.pop() if self.returned else self._group() for _ in range(num_samples)]

    def add_samples(self, samples: list[list[Sample]]) -> None:
        self.returned += samples

    def save(self, rollout_id: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{rollout_id}.json").write_text(json.dumps({"next": self.next}))

    def load(self, rollout_id: int) -> None:
        """After this the same groups must come again, in the same order."""
        self.next = json.loads((self.folder / f"{rollout_id}.json").read_text())["next"]

    def _group(self) -> list[Sample]:
        rng = random.Random(self.next)
        a, b = rng.randrange(100), rng.randrange(100)
        self.next += 1
        return [
            Sample(prompt=f"{a} + {b} =", label=str(a + b), metadata={"rm_type": "exact_match"})
            for _ in range(self.args.n_samples_per_prompt)
        ]
