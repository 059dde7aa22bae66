"""A realistic run directory, made without running anything: `python -m tests.unit.sample_run
RUN_DIR [NUM_ROLLOUTS]`.

Records come from the real builders, so report and telemetry see what a run would give them.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.histogram import ratio_bins
from pipeline.core.types import (
    EvalResult,
    Group,
    PushResult,
    Sample,
    Status,
    StepResult,
    VersionSpan,
)
from pipeline.run.metrics import BufferFill, eval_record, push_record, train_record
from pipeline.run.record_file import line_of
from pipeline.run.samples import sample_records
from pipeline.run.utilisation import Lap

CONFIG = (
    "# The run.\n- --num-rollout {n}\n- --async-buffer-size 2\n- --update-weights-interval 1\n-"
    " --hf-checkpoint <tiny & local>\n"
)


def make_sample(
    index: int, *, reward: float, spans: list[tuple[int, int]], status: Status = Status.COMPLETED
) -> Sample:
    """`spans`: (version, number of tokens) one after the other."""
    sample = Sample(
        index=index,
        prompt=f"Is {index} < 7 & even?",
        tokens=[1, 2, 3],
        response="<yes> & so on" if reward else "no",
        reward=reward,
        status=status,
    )
    for version, n in spans:
        sample.append_response_tokens(
            [5] * n, log_probs=[-0.1] * n, spans=[VersionSpan(version, 0, n)]
        )
    return sample


def make_groups(rng: random.Random, rollout: int, skill: float) -> list[Group]:
    groups = []
    for g in range(4):
        samples = []
        for i in range(8):
            lag = min(rng.choice((0, 1, 1, 2)), rollout)
            n = rng.randint(6, 40)
            status = Status.TRUNCATED if n > 38 else Status.COMPLETED
            old = rng.randint(1, n - 1) if lag else n
            spans = [(rollout - lag, old), (rollout - lag + 1, n - old)] if lag else [(rollout, n)]
            samples.append(
                make_sample(
                    (rollout * 4 + g) * 8 + i,
                    reward=float(rng.random() < skill),
                    spans=spans,
                    status=status,
                )
            )
        groups.append(
            Group(
                group_index=rollout * 4 + g,
                deadline=rollout + 2,
                admitted_version=max(rollout - 2, 0),
                samples=tuple(samples),
            )
        )
    return groups


def learner_metrics(rng: random.Random, rollout: int) -> dict[str, float]:
    return {
        "loss": 0.05 * math.exp(-rollout / 40) + rng.gauss(0, 0.004),
        "grad_norm": 0.6 + rng.expovariate(4),
        "lr": 1e-4,
        "entropy": 1.6 * math.exp(-rollout / 50) + 0.2,
        "kl_rollout_old": abs(rng.gauss(2e-3, 8e-4)),
        "kl_old_new": abs(rng.gauss(1e-3, 4e-4)),
        **ratio_bins([0] * 24 + [3, 50, 2] + [0] * 24),
        "ratio_max": 1.2 + rng.expovariate(5),
        "clip_fraction": abs(rng.gauss(0.02, 0.01)),
        "tis_clip_fraction": abs(rng.gauss(0.004, 0.002)),
        "ess_fraction": 1 - abs(rng.gauss(0.02, 0.01)),
        "seconds": 0.9 + rng.random() * 0.2,
    }


def records(num_rollouts: int, *, seed: int = 7) -> Iterator[dict[str, Any]]:
    """What a run of so many rollouts emits."""
    rng, wall = random.Random(seed), 14.0
    yield {
        "kind": "engine",
        "event": "start",
        "engine": "engine-0",
        "port": 31000,
        "wall_seconds": 9.0,
    }
    for r in range(num_rollouts):
        skill = 0.25 + 0.72 / (1 + math.exp(-(r - num_rollouts * 0.35) / (num_rollouts * 0.09)))
        groups = make_groups(rng, r, skill)
        interval = 1.2 + rng.random() * 0.6 + (2.5 if r == 0 else 0)
        wall += interval
        yield train_record(
            rollout_id=r,
            policy_version=r,
            groups=groups,
            result=StepResult(metrics=learner_metrics(rng, r)),
            staleness_bound=2,
            lap=Lap(
                seconds=interval,
                trainer_idle_fraction=0.05 + rng.random() * 0.25,
                generation_idle_fraction=rng.random() * 0.15,
            ),
            wall_seconds=wall,
            buffer=BufferFill(
                ready=rng.randint(0, 7), pending=rng.randint(3, 8), capacity=12, num_bytes=40_000
            ),
            extra={"samples_generated": (r + 3) * 32, "samples_failed": r // 9},
        )
        yield from sample_records(groups, rollout_id=r, policy_version=r, reward_key=None, limit=4)
        stall = rng.uniform(0.01, 0.05)
        push = PushResult(
            policy_version=r + 1,
            seconds=stall + rng.uniform(0.05, 0.2),
            stall_seconds=stall,
            num_bytes=4_000_000,
            num_engines=1,
        )
        yield push_record(push, rollout_id=r) | {"wall_seconds": wall + 0.2}
        if r % 10 == 9:
            yield eval_record(
                EvalResult(
                    name="held-out",
                    rollout_id=r + 1,
                    policy_version_min=r,
                    policy_version_max=r + 1,
                    reward_mean=min(skill + 0.02, 1.0),
                    num_samples=64,
                    num_failed=0,
                    response_length_mean=21.0,
                    truncated_fraction=0.02,
                    seconds=2.2,
                )
            ) | {"wall_seconds": wall + 2}
        if r == num_rollouts // 2:
            yield {
                "kind": "engine",
                "event": "death",
                "engine": "engine-0",
                "reason": "exit code -9",
                "wall_seconds": wall + 0.3,
            }
            yield {
                "kind": "engine",
                "event": "restart",
                "engine": "engine-0",
                "port": 31001,
                "wall_seconds": wall + 0.9,
            }


def write_run(path: Path, num_rollouts: int, *, asked_for: int | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(CONFIG.format(n=asked_for or num_rollouts))
    for name, samples in (("metrics.jsonl", False), ("samples.jsonl", True)):
        rows = [r for r in records(num_rollouts) if (r["kind"] == "sample") == samples]
        (path / name).write_text("".join(line_of({"time": 1.7e9, **row}) for row in rows))
    return path


if __name__ == "__main__":
    write_run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 80)
