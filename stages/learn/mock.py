"""A learner without a model: it takes its time, counts its steps, and reports figures of the right
names and sizes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

from configs.schema import MockConfig
from pipeline.core.errors import CheckpointError
from pipeline.core.histogram import NUM_RATIO_BINS, RATIO_WIDTH, ratio_bins
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import StepResult, TrainBatch, TrainSample

STATE_FILE = "mock_learner.json"


class MockLearner:
    """Implements `Learner`. What can be computed from the batch (tokens, staleness) is computed;
    the rest is made up from the step count."""

    def __init__(
        self,
        config: MockConfig,
        *,
        time: TimeSource | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._seconds = config.mock_step_seconds
        self._time, self._sleep = time or MonotonicTime(), sleep
        self.num_steps = 0

    async def step(self, batch: TrainBatch) -> StepResult:
        began = self._time.now()
        await self._sleep(self._seconds)
        self.num_steps += sum(not step.is_empty for step in batch.steps)
        samples = [
            s
            for step in batch.steps
            for rank in step.per_rank
            for micro_batch in rank
            for s in micro_batch
        ]
        return StepResult(metrics=self._metrics(samples, self._time.now() - began))

    def _metrics(self, samples: list[TrainSample], seconds: float) -> dict[str, float]:
        """The made-up figures: entropy falls with training, and policies drift apart with staleness
        (KL grows about with its square)."""
        if not samples:
            return {"loss": 0.0, "grad_norm": 0.0, "num_tokens": 0.0, "seconds": seconds}
        drift = 0.02 * sum(s.staleness for s in samples) / len(samples)
        settled = math.exp(-self.num_steps / 50)
        return {
            "loss": 0.1 * settled,
            "grad_norm": 0.2 + 0.8 * settled,
            "lr": 1e-3,
            "entropy": 0.3 + 2.0 * settled,
            "kl_rollout_old": drift**2 / 2,
            "kl_rollout_old_k1": drift**2 / 2,
            "kl_old_new": 0.0005,
            "ratio_mean": 1.0,
            "ratio_max": 1.0 + 3 * drift,
            "clip_fraction": min(0.1 * drift, 1.0),
            "tis_mean": 1.0,
            "tis_clip_fraction": 0.0,
            "masked_fraction": 0.0,
            "rollout_ratio_p01": math.exp(-2.3 * drift),
            "rollout_ratio_p50": 1.0,
            "rollout_ratio_p99": math.exp(2.3 * drift),
            "ess_fraction": math.exp(-(drift**2)),
            "num_tokens": float(sum(s.num_tokens for s in samples)),
            "seconds": seconds,
            **ratio_bins(_bell(drift, sum(int(s.loss_mask.sum()) for s in samples))),
        }

    async def save(self, path: Path, hf: Path | None) -> None:
        for folder in (path / "torch_dist", *([hf] if hf else [])):
            folder.mkdir(parents=True, exist_ok=True)
        (path / "torch_dist" / STATE_FILE).write_text(
            json.dumps({"num_steps": self.num_steps}), encoding="utf-8"
        )

    async def saved(self, *, wait: bool) -> bool:
        return True

    async def load(self, path: Path) -> None:
        """Raises CheckpointError when `path` was not written by a mock run."""
        file = path / "torch_dist" / STATE_FILE
        try:
            self.num_steps = int(json.loads(file.read_text(encoding="utf-8"))["num_steps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{file}: not a mock learner's checkpoint ({type(error).__name__}: {error}); a"
                " --mock run resumes --mock runs only"
            ) from error

    async def restart(self) -> None:
        """A learner as it was at the beginning, in the place of one that is lost."""
        self.num_steps = 0

    async def close(self) -> None:
        return None


def _bell(deviation: float, num_tokens: int) -> list[float]:
    """How many tokens each bin of the log-ratio has, if it were normal with this deviation."""
    edges = [(i - NUM_RATIO_BINS / 2) * RATIO_WIDTH for i in range(1, NUM_RATIO_BINS)]
    below = [0.0, *(0.5 + 0.5 * math.erf(e / max(deviation, 1e-9) / 2**0.5) for e in edges), 1.0]
    return [round(num_tokens * (b - a), 3) for a, b in pairwise(below)]
