"""Half a pipeline, for debugging: generation without a learner (--debug-rollout-only), or a learner
without engines (--debug-train-only), as in slime. What is left out is replaced by parts that do
nothing; its figures are missing in metrics.jsonl."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from buffers.dump import KeptRollout, KeptRun, path_of, read_take, write_take
from buffers.journal import FILE_NAME
from buffers.kept import KeptRollouts
from configs.schema import Config
from pipeline.core.types import Group, PushResult, StepResult, TrainBatch
from pipeline.schedule.clock import RolloutClock
from pipeline.wiring.backend import Backend

logger = logging.getLogger(__name__)


class NoLearner:
    """`Learner`: no step changes anything."""

    async def step(self, batch: TrainBatch) -> StepResult:
        return StepResult(metrics={})

    async def save(self, path: Path, hf: Path | None) -> None: ...
    async def saved(self, *, wait: bool) -> bool:
        return True

    async def load(self, path: Path) -> None: ...
    async def close(self) -> None: ...


class NoTransport:
    """`WeightTransport`: there is no engine to bring weights to."""

    def __init__(self) -> None:
        self._version = 0

    async def stage(self, policy_version: int) -> bool:
        self._version = policy_version
        return True

    async def deliver(self) -> PushResult:
        return PushResult(
            policy_version=self._version, seconds=0.0, stall_seconds=0.0, num_bytes=0, num_engines=0
        )

    async def close(self) -> None: ...


def warn_of_what_is_left_out(config: Config) -> None:
    """Warns of flags that half a pipeline does not follow."""
    if config.run.debug_rollout_only and config.warmup.sft_steps:
        logger.warning(
            "--debug-rollout-only: without a learner the warm-up (--sft-steps %d) is left out too;"
            " engines generate with --hf-checkpoint's weights. For warmed-up ones, give"
            " --hf-checkpoint a checkpoint: RUN_DIR/checkpoints/latest/hf",
            config.warmup.sft_steps,
        )


def half(backend: Backend, config: Config) -> Backend:
    """The backend without what the run leaves out."""
    if config.run.debug_rollout_only:
        return replace(backend, learner=NoLearner())
    if not config.has_engines:
        return replace(
            backend,
            transport=NoTransport(),
            engine_idle_seconds=dict,
            engine_counts=dict,
            membership=None,
        )
    return backend


def kept_rollouts(config: Config, clock: RolloutClock) -> KeptRollouts:
    """--load-debug-rollout-data: the buffer that reads files by rollout id, or a run directory."""
    source = config.run.load_debug_rollout_data or ""
    if (Path(source) / "buffer" / FILE_NAME).exists():
        return KeptRollouts(KeptRun(Path(source) / "buffer").read, clock)
    return KeptRollouts(lambda rollout_id: read_take(path_of(source, rollout_id)), clock)


def saver(config: Config) -> Callable[[int, int, Sequence[Group]], None] | None:
    """--save-debug-rollout-data: a function of (rollout_id, policy_version, groups) that writes
    each rollout to a file."""
    template = config.run.save_debug_rollout_data
    if template is None:
        return None

    def save(rollout_id: int, policy_version: int, groups: Sequence[Group]) -> None:
        take = KeptRollout(
            rollout_id=rollout_id, policy_version=policy_version, groups=tuple(groups)
        )
        write_take(path_of(template, rollout_id), take)

    return save
