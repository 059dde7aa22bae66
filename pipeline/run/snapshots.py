"""When a run saves, and what it would go back to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import SlipstreamError
from pipeline.run.parts import Parts
from pipeline.run.pushes import Pushes
from pipeline.run.snapshot import PendingSnapshot, begin_snapshot, commit_snapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePoint:
    """The instant that a run can go back to: that of its last checkpoint, or its beginning."""

    path: Path | None  # the checkpoint; None: the weights are those that the run began with
    num_trained: int
    state: Mapping[str, Any]  # the driver's, as it would be read from a file


class Snapshots:
    """Saves between two steps only, so that the snapshot's weights and the driver's state are of
    the same instant. Waits for: the push under way, and the snapshot before."""

    def __init__(self, parts: Parts, pushes: Pushes) -> None:
        self._p, self._pushes = parts, pushes
        self._saved: int | None = None  # rollouts trained at the last snapshot
        self._pending: PendingSnapshot | None = None  # one that the learner may still be writing
        self._point: RestorePoint | None = None

    @property
    def point(self) -> RestorePoint:
        """What the run would go back to. Only after `begun`, with --use-fault-tolerance."""
        assert self._point is not None, "before begun(), or without --use-fault-tolerance"
        return self._point

    def begun(self) -> None:
        """Engines and learner are up, and nothing is produced yet."""
        self._set_point(self._p.snapshot, self._p.clock.num_trained, self._state())

    async def after(self, rollout_id: int) -> None:
        """Saves where a checkpoint is due. With --async-save it is committed by a later rollout's
        call, and the last one before this returns."""
        interval, done = self._p.config.run.save_interval, rollout_id + 1
        await self._commit(wait=False)
        if self._p.clock.finished or (interval and done % interval == 0):
            await self.now(wait=self._p.clock.finished)

    async def now(self, *, wait: bool) -> None:
        """Saves. With `wait` it is in force when this returns."""
        p = self._p
        if not p.saves:
            return
        if p.clock.num_trained == 0:
            logger.warning("nothing is trained yet: no snapshot to save")
            return
        if p.clock.num_trained == self._saved:
            await self._commit(wait=wait)
            return
        await self._pushes.through()
        state = self._state()
        await self._commit(wait=True)
        with p.recorder.trainer_busy(), p.watchdog.stage("save"):
            self._pending = await begin_snapshot(
                p.checkpoints, p.clock.num_trained, p.learner, state, p.config.run.save_hf
            )
        self._saved = p.clock.num_trained
        await self._commit(wait=wait)

    async def commit_what_is_left(self) -> None:
        """A run that fails while a snapshot is being written keeps that snapshot, if its learner
        lives."""
        try:
            await self._commit(wait=True)
        except (SlipstreamError, OSError) as e:
            logger.warning("the snapshot under way is lost: %s", e)

    def give_up(self) -> None:
        """The learner is lost: what it was writing is not in force, and never will be."""
        self._pending = None
        self._saved = None if self.point.path is None else self.point.num_trained

    async def _commit(self, *, wait: bool) -> None:
        """Puts the snapshot that was begun in force, if all of it is on the disk (with `wait`: when
        it is)."""
        pending = self._pending
        if pending is None:
            return
        with self._p.recorder.trainer_busy(), self._p.watchdog.stage("save"):
            if not await self._p.learner.saved(wait=wait):
                return
            commit_snapshot(pending)
        self._pending = None
        self._p.buffer.committed(pending.num_trained, pending.path.name)
        self._set_point(pending.path, pending.num_trained, pending.state)
        logger.info("saved %s", pending.path)

    def _state(self) -> dict[str, Any]:
        p = self._p
        return {
            "clock": p.clock.state_dict(),
            "producer": p.producer.state_dict(),
            "recorder": p.recorder.state_dict(),
        }

    def _set_point(self, path: Path | None, num_trained: int, state: Mapping[str, Any]) -> None:
        if self._p.config.cluster.use_fault_tolerance:
            state = json.loads(json.dumps(state))
            self._point = RestorePoint(path=path, num_trained=num_trained, state=state)
