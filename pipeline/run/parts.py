"""What a run is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from configs.schema import Config
from pipeline.core.protocols import Buffer, Learner, WeightTransport
from pipeline.core.types import EvalResult, Group, TrainBatch
from pipeline.run.lookout import Lookout
from pipeline.run.recorder import Recorder
from pipeline.run.watchdog import Watchdog
from pipeline.schedule.clock import RolloutClock


class EvaluationStage(Protocol):
    """Evaluates every data set once; its results carry the policy versions of their tokens."""

    async def evaluate(self, rollout_id: int) -> list[EvalResult]: ...


class Production(Protocol):
    """Fills the buffer for ever, beside the learner's loop."""

    async def run(self) -> None: ...
    def forget(self) -> None:
        """What is trained on need not be kept for a restart."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def rewind(self, state: Mapping[str, Any]) -> None:
        """The run goes back to where this state was taken; clock and buffer are there already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The concrete parts of one run, made by pipeline.wiring."""

    config: Config
    run_dir: Path
    checkpoints: Path
    clock: RolloutClock
    producer: Production
    buffer: Buffer
    learner: Learner
    transport: WeightTransport
    # (rollout_id, policy_version, groups)
    make_batch: Callable[[int, int, Sequence[Group]], TrainBatch]
    save_batch: Callable[[TrainBatch], Path]  # what a refused step was given, for a post-mortem
    # (rollout_id, policy_version, groups), of every take
    save_rollout: Callable[[int, int, Sequence[Group]], None] | None
    saves: bool  # are there weights to save?
    snapshot: Path | None  # the checkpoint that the run goes on from
    # new ranks for a learner that is lost, with the weights of a checkpoint; None: with those that
    # the run began with
    restore_learner: Callable[[Path | None], Awaitable[None]]
    evaluator: EvaluationStage | None
    recorder: Recorder
    watchdog: Watchdog
    lookout: Lookout
    # engines and learner up, the learner's weights on every engine
    start: Callable[[], Awaitable[None]]
    began: Callable[[], None]  # engines and learner are up: the run's folder is there to stay
    abandon: Callable[[], None]  # they did not come up: as if it had never been asked for
    close: Callable[[], Awaitable[None]]  # everything down, from any state
    kill_now: Callable[[], None]  # the same, at once and synchronously
