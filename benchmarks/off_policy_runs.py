"""One run of the off-policy experiment: a method at a staleness, a learning rate and a seed; and
the file of lines that keeps what was run, so that an experiment of many hours goes on where it
stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import train
from benchmarks.off_policy_tasks import TASKS

_OWN = "--no-use-tis"
_PRESET = "--off-policy-correction"
METHODS: dict[str, tuple[str, ...]] = {
    "none": (_OWN,),
    "tis": ("--use-tis",),
    "seq-tis+ess": (_OWN, _PRESET, "seq-tis", "--ess-lr-scaling"),
    "vcpo": (
        *(_OWN, _PRESET, "seq-tis", "--correction-high", "8", "--ess-lr-scaling"),
        *("--advantage-estimator", "opob"),
        *("--eps-clip", "1", "--eps-clip-high", "1e9"),
    ),
    "gspo": (_OWN, "--advantage-estimator", "gspo", "--use-rollout-logprobs"),
    "decoupled": (_OWN, _PRESET, "decoupled-ppo"),
    "m2po": (_OWN, _PRESET, "m2po"),
    "dppo-kl": (_OWN, _PRESET, "dppo-kl"),
    "two-sided": (_OWN, _PRESET, "two-sided"),
    "geo-rs-tis": (_OWN, _PRESET, "geo-rs-tis"),
}
"""A method's flags. `none` clips against log-probs recomputed at consumption and takes them for
the rollout's own; at staleness 0 it is exact, and the synchronous run."""

SYNCHRONOUS = "none"
LATE = 5
"""How many of the last evaluations make a run's figure."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one run is of; `seed` seeds the weights' dropout, the shuffle and the sampling."""

    method: str
    staleness: int
    lr: float
    seed: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What all runs of an experiment share; `model` is the digest of the weights they start from,
    for a warm-up on another machine may end elsewhere."""

    model: str
    task: str = "quickstart"
    rollouts: int = 100
    eval_every: int = 5
    eval_prompts: int = 256
    eval_samples: int = 8

    def flags(self, cell: Cell, model: Path) -> list[str]:
        """The command line of a run, after `train_async.py`."""
        return [
            *TASKS[self.task].flags,
            *("--hf-checkpoint", str(model), "--sft-steps", "0"),
            *("--num-rollout", str(self.rollouts)),
            *("--async-buffer-size", str(cell.staleness), "--fixed-staleness"),
            *("--lr", str(cell.lr), "--min-lr", "0", "--lr-decay-style", "linear"),
            *("--eval-interval", str(self.eval_every), "--skip-eval-before-train"),
            *("--eval-max-prompts", str(self.eval_prompts)),
            *("--n-samples-per-eval-prompt", str(self.eval_samples)),
            *("--seed", str(cell.seed), "--rollout-seed", str(cell.seed)),
            *METHODS[cell.method],
        ]


def digest(model: Path) -> str:
    """Twelve hexadecimal digits of a model folder's weights."""
    weights = hashlib.sha256()
    for path in sorted(model.glob("*.safetensors")):
        weights.update(path.read_bytes())
    return weights.hexdigest()[:12]


def run(cell: Cell, protocol: Protocol, model: Path, engine: Sequence[str] = ()) -> dict[str, Any]:
    """Trains, with an engine of its own or with that of these flags, and says what came of it.
    `held_out`: [rollouts trained, mean reward] of every evaluation of the policy's own weights on
    prompts it is not trained on. Raises ValueError where the tokens were not `cell.staleness`
    versions old, CalledProcessError where the run failed."""
    found = train(*protocol.flags(cell, model), *engine)
    trained = found["train"]
    staleness = statistics.fmean(r["staleness_mean"] for r in trained[cell.staleness :])
    if abs(staleness - cell.staleness) > 0.2:
        raise ValueError(
            f"{cell}: the tokens were {staleness:.2f} versions old in the mean, {cell.staleness} "
            "were asked for; such a run says nothing about that staleness"
        )
    held_out = [[r["rollout_id"], r["reward_mean"]] for r in found["eval"]]
    return {
        **dataclasses.asdict(cell),
        **dataclasses.asdict(protocol),
        "late": statistics.fmean(reward for _, reward in held_out[-LATE:]),
        "held_out": held_out,
        "staleness_mean": staleness,
        "ess_fraction": statistics.fmean(r["ess_fraction"] for r in trained),
        "seconds": trained[-1]["wall_seconds"],
    }


@dataclasses.dataclass(slots=True)
class Book:
    """The runs that are done, a line of JSON each. A run is the same if its cell and its protocol
    are: nothing is run twice, and an experiment with other settings may share the file."""

    path: Path
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Book:
        """Raises ValueError, with the line's number, at a line that is no run."""
        book = cls(path)
        if path.exists():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    book.rows.append(json.loads(line))
                except json.JSONDecodeError as e:
                    raise ValueError(f"{path}:{number}: no JSON ({e}); remove the line") from e
        return book

    def find(self, cell: Cell, protocol: Protocol) -> dict[str, Any] | None:
        wanted = {**dataclasses.asdict(cell), **dataclasses.asdict(protocol)}
        return next((r for r in self.rows if wanted.items() <= r.items()), None)

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")

    def of(
        self, method: str, staleness: int, lr: float, seeds: Sequence[int], protocol: Protocol
    ) -> list[dict[str, Any]]:
        """The runs of these seeds that are done, in the seeds' order."""
        cells = (Cell(method=method, staleness=staleness, lr=lr, seed=s) for s in seeds)
        return [row for cell in cells if (row := self.find(cell, protocol)) is not None]
