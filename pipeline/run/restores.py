"""A learner that is lost is restored, and the run goes back with it; engines and generation are
kept."""

from __future__ import annotations

import logging

from pipeline.core.errors import ClusterError, LearnerError, LearnerLostError
from pipeline.core.format import counted
from pipeline.run.disk_full import is_disk_full
from pipeline.run.parts import Parts
from pipeline.run.pushes import Pushes
from pipeline.run.snapshots import RestorePoint, Snapshots
from pipeline.schedule.restores import Restore, RestoreLimit

logger = logging.getLogger(__name__)


class Restores:
    """Consumes: the loss of the learner. Waits for: new ranks, and every engine's confirmation of
    their weights. Unblocks: the learner's loop, at the rollout after the checkpoint.

    Meanwhile groups are generated, stored and admitted as ever. When all engines have the restored
    weights, clock, buffer and producer go back in one step."""

    def __init__(self, parts: Parts, pushes: Pushes, snapshots: Snapshots) -> None:
        self._p, self._pushes, self._snapshots = parts, pushes, snapshots
        cluster = parts.config.cluster
        self._is_on = cluster.use_fault_tolerance
        self._limit = RestoreLimit(cluster.learner_restarts)
        self.under_way = False  # is there no learner now?

    def survives(self, error: BaseException) -> bool:
        """Does the run go on after this? Not where the disk is full: it would be again."""
        return self._is_on and isinstance(error, LearnerLostError) and not is_disk_full(error)

    async def restore(self, error: LearnerLostError) -> None:
        """Brings the learner back. One that is lost again meanwhile is restored again.

        Raises LearnerError when --learner-restarts is used up, or there is no room for its ranks.
        """
        self.under_way = True
        began = self._p.recorder.wall_seconds
        with self._p.watchdog.stage("restore"):
            while (again := await self._try(error, began)) is not None:
                error = again
        self.under_way = False

    async def _try(self, error: LearnerLostError, began: float) -> LearnerLostError | None:
        await self._pushes.call_off()
        self._snapshots.give_up()
        point = self._snapshots.point
        found = self._limit.after_loss(
            num_trained=self._p.clock.num_trained,
            num_saved=point.num_trained,
            highest_version=self._pushes.highest_version,
        )
        if found is None:
            raise LearnerError(
                f"the learner was lost, and was restored {counted(self._limit.most, 'time')} before"
                f" (--learner-restarts {self._limit.most}): {error}. To go on: --load"
                f" {self._p.run_dir}"
            ) from error
        origin = str(point.path) if point.path is not None else "the weights it began with"
        logger.warning(
            "the learner is lost: %s. Restore %d of %d: from %s, after %s; engines go on, and %s"
            " since then %s trained again",
            error,
            found.number,
            self._limit.most,
            origin,
            counted(found.num_trained, "rollout"),
            counted(found.num_lost, "rollout"),
            "is" if found.num_lost == 1 else "are",
        )
        try:
            await self._p.restore_learner(point.path)
            await self._pushes.restored(found.policy_version)
        except ClusterError as no_room:
            raise LearnerError(f"the learner cannot be restored: {no_room}") from error
        except LearnerLostError as again:
            if not self.survives(again):
                raise
            return again
        self._go_back(point, found)
        self._p.recorder.learner(
            "restore",
            num_restores=found.number,
            num_trained=found.num_trained,
            num_rollouts_lost=found.num_lost,
            policy_version=found.policy_version,
            seconds=self._p.recorder.wall_seconds - began,
            reason=str(error),
        )
        logger.info("the learner is back, at policy version %d", found.policy_version)
        return None

    def _go_back(self, point: RestorePoint, found: Restore) -> None:
        """In one step of the event loop, so that nobody sees half of it."""
        p = self._p
        p.clock.load_state_dict(point.state["clock"])
        p.clock.renumber(point.num_trained, found.policy_version)
        p.buffer.rewind(None if point.path is None else point.path.name)
        p.producer.rewind(point.state["producer"])
