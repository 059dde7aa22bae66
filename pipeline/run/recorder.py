"""Turns what happened into the records that say so.

The runner reports events; every record goes through telemetry, once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from pipeline.core.agent_counts import AGENT_COUNTERS
from pipeline.core.format import counted, number
from pipeline.core.tally import Tally
from pipeline.core.time import TimeSource
from pipeline.core.types import EvalResult, Group, PushResult, Sample, StepResult, TrainBatch
from pipeline.run.digest import batch_digest
from pipeline.run.drops import counts_by_kind
from pipeline.run.equal_rewards import EqualRewards
from pipeline.run.lookout import Blocked
from pipeline.run.loop_lag import LoopLag
from pipeline.run.metrics import BufferFill, eval_record, push_record, train_record
from pipeline.run.samples import losses_in_words, sample_records
from pipeline.run.utilisation import Utilisation
from pipeline.run.watchdog import Silence
from pipeline.schedule.clock import RolloutClock

logger = logging.getLogger(__name__)

# (rollout_id, samples, the rollout's record, seconds since the one before)
LogRollout = Callable[[int, list[Sample], Mapping[str, Any], float], Any]


_COUNTERS = (
    "samples_generated",
    "samples_failed",
    "samples_timed_out",
    "samples_discarded",
    "samples_unjudged",
    *AGENT_COUNTERS,
)


class RecordStream(Protocol):
    """What the recorder needs of telemetry."""

    def emit(self, kind: str, **fields: Any) -> None: ...


class BufferCounts(Protocol):
    """The counts of buffers.statistics.BufferStatistics that a record shows."""

    @property
    def num_ready(self) -> int: ...
    @property
    def num_generating(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def trained_lengths(self) -> Mapping[int, int]: ...
    @property
    def removed_lengths(self) -> Mapping[int, int]: ...
    @property
    def num_samples_filtered(self) -> int: ...


class Recorder:
    """Knows the run's clock, time and counters; keeps no history."""

    def __init__(
        self,
        *,
        telemetry: RecordStream,
        clock: RolloutClock,
        time: TimeSource,
        started_at: float,
        counts: Mapping[str, int],
        buffer_statistics: Callable[[], BufferCounts],
        engine_idle_seconds: Callable[[], Mapping[str, float]],
        engine_counts: Callable[[], Mapping[str, int]],
        reward_key: str | None,
        log_samples: int,
        on_finish: Callable[[float, bool], None],
        equal_rewards: EqualRewards | None = None,
        log_rollout: LogRollout | None = None,
        loop_lag: LoopLag | None = None,
        worker_lag: Callable[[], Mapping[str, float | None]] | None = None,
    ) -> None:
        """`started_at`: the instant (of `time`) from which wall_seconds count. `counts`: the
        producer's, live. `on_finish(wall_seconds, interrupted)` writes summary and report.
        `equal_rewards`: None where rewards are not what is learned from. `log_rollout`: the user's
        (--custom-rollout-log-function-path). `loop_lag`: starts with the run.
        `worker_lag`: the same of rollout workers, the worst of them."""
        self._loop_lag, self._worker_lag = loop_lag, worker_lag
        self._log_rollout, self._last_at = log_rollout, time.now()
        self._telemetry, self._clock, self._time = telemetry, clock, time
        self._started_at, self._earlier_seconds = started_at, 0.0
        self._counts, self._buffer_statistics = counts, buffer_statistics
        self._engine_counts, self._log_samples = engine_counts, log_samples
        self._engine_idle_seconds, self._reward_key, self._on_finish = (
            engine_idle_seconds,
            reward_key,
            on_finish,
        )
        self._utilisation = Utilisation(time, engine_idle_seconds)
        self._compared = False
        self._empty = Tally(logger, "rollout", "with empty optimizer steps")
        self._filled = Tally(logger, "rollout", "with fewer samples than ranks in a step")
        self._equal_rewards = equal_rewards

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, start-up included. A resumed run goes on counting from its
        snapshot."""
        return self._earlier_seconds + self._time.now() - self._started_at

    def trainer_busy(self) -> AbstractContextManager[None]:
        return self._utilisation.trainer_busy()

    def started(self) -> None:
        """Engines and learner are up: idle shares count from here."""
        if self._loop_lag is not None:
            self._loop_lag.start()
        self._utilisation = Utilisation(self._time, self._engine_idle_seconds)
        self._last_at = self._time.now()
        for engine in self._engine_idle_seconds():
            self.engine("start", engine=engine)

    def trained(
        self, rollout_id: int, groups: Sequence[Group], batch: TrainBatch, result: StepResult
    ) -> None:
        fill = self._buffer_statistics()
        capacity = (self._clock.buffer_size + 1) * self._clock.batch_size
        record = train_record(
            rollout_id=rollout_id,
            policy_version=batch.policy_version,
            groups=groups,
            result=result,
            staleness_bound=self._clock.max_staleness,
            lap=self._utilisation.lap(),
            wall_seconds=self.wall_seconds,
            buffer=BufferFill(
                ready=fill.num_ready,
                pending=fill.num_generating,
                capacity=capacity,
                num_bytes=fill.num_bytes,
            ),
            reward_key=self._reward_key,
            lengths_trained=fill.trained_lengths,
            lengths_removed=fill.removed_lengths,
            extra={
                "num_optimizer_steps": len(batch.steps),
                **self._shortfall(batch, groups),
                **self._counters(),
                **self._lag(),
                "batch_digest": batch_digest(batch),
            },
        )
        warning = None
        if self._equal_rewards is not None:
            record["rewards_equal"] = self._equal_rewards.add(record)
            warning = self._equal_rewards.warning(record)
        self._telemetry.emit(**record)
        if self._log_rollout is not None:
            samples = [sample for group in groups for sample in group.samples]
            self._log_rollout(rollout_id, samples, record, self._time.now() - self._last_at)
        self._last_at = self._time.now()
        for sample in sample_records(
            groups,
            rollout_id=rollout_id,
            policy_version=batch.policy_version,
            reward_key=self._reward_key,
            limit=self._log_samples,
        ):
            self._telemetry.emit(**sample)
        if warning is not None:
            logger.warning("%s", warning)
        self._compare(record)
        self.engine("stats", **self._engine_counts())

    def _lag(self) -> dict[str, float | None]:
        """How late event loops were since the last record, in seconds."""
        laps = {
            "event_loop_lag_seconds": self._loop_lag.lap() if self._loop_lag else {},
            "worker_event_loop_lag_seconds": self._worker_lag() if self._worker_lag else {},
        }
        return {
            f"{whose}_{name}": seconds
            for whose, lap in laps.items()
            for name, seconds in lap.items()
        }

    def _counters(self) -> dict[str, int]:
        """What was counted since the start: in every record of a rollout, and of a wait for one."""
        return {
            **{name: self._counts[name] for name in _COUNTERS},
            "samples_removed_by_buffer_filter": self._buffer_statistics().num_samples_filtered,
            **counts_by_kind(self._clock.given_back),
        }

    def _shortfall(self, batch: TrainBatch, groups: Sequence[Group]) -> dict[str, int]:
        """Warns of a rollout that has too few trained samples for its steps and ranks; training
        goes on."""
        empty = sum(step.is_empty for step in batch.steps)
        fillers = sum(step.num_fillers for step in batch.steps)
        if empty:
            self._empty.add(
                f"rollout {batch.rollout_id}: {empty} of its {len(batch.steps)} optimizer steps had"
                f" no sample with a loss and changed nothing ({losses_in_words(groups)})"
            )
        elif fillers:
            self._filled.add(
                f"rollout {batch.rollout_id}: {counted(fillers, 'time')} a learner rank had no"
                " sample with a loss for an optimizer step, and only took part in it"
            )
        self._empty.say()
        self._filled.say()
        return {"num_empty_steps": empty, "num_idle_rank_steps": fillers}

    def _compare(self, record: Mapping[str, Any]) -> None:
        """Says once how far learner and engines are apart, at the first rollout that the learner's
        own weights have sampled."""
        mean, most = (
            record.get(f"train_rollout_logprob_abs_diff{suffix}") for suffix in ("", "_max")
        )
        if self._compared or record["staleness_max"] > 0 or mean is None or most is None:
            return
        self._compared = True
        said = (
            "are equal, bit for bit"
            if most == 0
            else f"differ by {number(mean)} on average, {number(most)} at most"
        )
        logger.info(
            "log-probs of engines and learner, on the same weights, %s (%d tokens)",
            said,
            record["num_loss_tokens"],
        )

    def pushed(self, rollout_id: int, result: PushResult) -> None:
        self._telemetry.emit(
            **push_record(result, rollout_id=rollout_id), wall_seconds=self.wall_seconds
        )

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        """Records evaluations. One of which every sample failed is shown as an error by whoever
        shows records, and logged as one."""
        for result in results:
            if result.error is not None:
                logger.error(
                    "evaluation %s after %d rollouts: %s",
                    result.name,
                    result.rollout_id,
                    result.error,
                    extra={"file_only": True},
                )
            elif result.num_failed:
                logger.warning(
                    "evaluation %s after %d rollouts: %d of %d samples failed and count in no mean,"
                    " the first with: %s",
                    result.name,
                    result.rollout_id,
                    result.num_failed,
                    result.num_samples,
                    result.first_failure,
                )
            self._telemetry.emit(**eval_record(result), wall_seconds=self.wall_seconds)

    def evaluation_failed(self, rollout_id: int, error: Exception) -> None:
        self._telemetry.emit(
            "eval", rollout_id=rollout_id, error=str(error), wall_seconds=self.wall_seconds
        )

    def engine(self, event: str, **fields: Any) -> None:
        """Records what happened to an engine. event: start | death | restart | no_room | lost |
        drained | stats."""
        self._telemetry.emit("engine", event=event, **fields, wall_seconds=self.wall_seconds)

    def learner(self, event: str, **fields: Any) -> None:
        """Records what happened to the learner. event: restore."""
        self._telemetry.emit("learner", event=event, **fields, wall_seconds=self.wall_seconds)

    def waits(self, news: Silence | Blocked) -> None:
        """Reports that nothing was trained for long: in words to log and terminal, in fields to the
        records."""
        quietly = isinstance(news, Silence) and news.is_start
        logger.log(logging.INFO if quietly else logging.WARNING, "%s", news)
        self._telemetry.emit(
            "wait", **news.record(), **self._counters(), wall_seconds=self.wall_seconds
        )

    def finish(self, *, interrupted: bool) -> None:
        if self._loop_lag is not None:
            self._loop_lag.stop()
        self._on_finish(self.wall_seconds, interrupted)

    # -- resume ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {"wall_seconds": self.wall_seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._earlier_seconds = state["wall_seconds"]
