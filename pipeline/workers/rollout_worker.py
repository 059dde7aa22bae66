"""What runs in the process of one rollout worker: groups are made here, by users' functions too.

It knows neither buffer nor clock: the driver admits, schedules and keeps."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import sys
import traceback
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.encoded_group import EncodedGroup
from pipeline.core.errors import GenerateError, SlipstreamError
from pipeline.run.group_maker import MadeGroup
from pipeline.run.lookout import Blocked, Lookout
from pipeline.run.loop_lag import LoopLag
from pipeline.run.outcome import collect_rarely
from pipeline.run.watchdog import Awaited, Silence, Watchdog
from pipeline.workers.rollout_messages import (
    Bench,
    BlockedLoop,
    Broken,
    Delivery,
    LogLine,
    Order,
    Report,
    WorkerSetup,
)

if TYPE_CHECKING:
    from stages.engine.view import PoolView

GATHER_SECONDS = 0.03  # between deliveries: each costs the driver half a millisecond
REPORT_SECONDS = 1.0
MOST_LINES = 1000  # of the log, between two reports


class RolloutWorker:
    """An asyncio actor: its methods run on one event loop, `watch` on another thread's."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._bench: Bench | None = None
        self._watchdog = Watchdog()
        self._lag = LoopLag()
        self._tasks: set[asyncio.Task[None]] = set()
        self._made: list[tuple[int, MadeGroup | Broken]] = []
        self._blocked: deque[BlockedLoop] = deque()
        self._oldest: list[Awaited] = []
        self._lines = _LogBox()
        self._lookout = Lookout(self, self._report, blocked_seconds=setup.blocked_seconds)

    async def start(self, view: PoolView) -> tuple[int, str]:
        """Makes the parts; returns process id and host. Raises what making them raises."""
        self._news, self._delivered = asyncio.Event(), 0.0
        with contextlib.suppress(OSError):  # on another node there may be no such folder
            os.chdir(self._setup.folder)
        if self._setup.folder not in sys.path:
            sys.path.insert(0, self._setup.folder)
        _print_to(self._setup.log_path)
        logging.getLogger().addHandler(self._lines)
        logging.getLogger().setLevel(logging.INFO)
        collect_rarely()
        self._bench = self._setup.make_bench(self._watchdog)
        self._bench.pool.on_news = self._news.set
        self._bench.pool.follow(view)
        self._lag.start()
        self._lookout.start()
        return os.getpid(), socket.gethostname()

    async def begin(self, orders: bytes, view: PoolView | None) -> None:
        """Begins to make these groups (a list of Order, pickled by the driver). `view`: where it
        has changed."""
        self._follow(view)
        assert self._bench is not None
        for order in pickle.loads(orders):
            task = asyncio.create_task(self._make(self._bench, order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def collect(self) -> Delivery:
        """The next delivery, when there is something in it."""
        assert self._bench is not None
        await self._news.wait()
        now = asyncio.get_running_loop().time
        await asyncio.sleep(max(0.0, self._delivered + GATHER_SECONDS - now()))
        self._delivered = now()
        self._news.clear()
        made, self._made = self._made, []
        return Delivery(
            made=made,
            in_flight=self._bench.pool.in_flight(),
            suspicions=self._bench.pool.take_suspicions(),
        )

    async def checked(self, endpoint: str, view: PoolView | None) -> None:
        """The driver has looked at the engine that was suspected."""
        self._follow(view)
        assert self._bench is not None
        self._bench.pool.checked(endpoint)

    async def drained(self, endpoint: str, view: PoolView | None) -> None:
        """Returns when no request of ours is at this engine, which `view` has gated."""
        self._follow(view)
        assert self._bench is not None
        await self._bench.pool.drained(endpoint)

    async def watch(self) -> Report:
        await asyncio.sleep(REPORT_SECONDS)
        blocked = [self._blocked.popleft() for _ in range(len(self._blocked))]
        return Report(
            lag=self._lag.lap(), blocked=blocked, lines=self._lines.take(), oldest=self._oldest
        )

    async def close(self) -> None:
        """Ends what the parts have started."""
        self._lookout.stop()
        if self._bench is not None:
            await self._bench.close()

    def check(self) -> Silence | None:
        """Asked by the lookout, on the loop of the groups."""
        self._oldest = self._watchdog.under_way("group")
        return None

    def _follow(self, view: PoolView | None) -> None:
        if view is not None and self._bench is not None:
            self._bench.pool.follow(view)

    async def _make(self, bench: Bench, order: Order) -> None:
        made: MadeGroup | Broken
        try:
            made = _sendable(await bench.make(order.admission, order.prompts))
        except Exception as error:  # the driver's producer ends with it
            made = _broken(error)
        self._made.append((order.admission.group_index, made))
        self._news.set()

    def _report(self, news: Silence | Blocked) -> None:
        if isinstance(news, Blocked):
            self._blocked.append(BlockedLoop(seconds=news.seconds, where=news.where))


class _LogBox(logging.Handler):
    """Keeps what is logged here until it is asked for: the driver has the run's log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._kept: deque[LogLine] = deque(maxlen=MOST_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(
            LogLine(
                logger=record.name,
                level=record.levelno,
                text=self.format(record),
                file_only=getattr(record, "file_only", False),
                terminal_only=getattr(record, "terminal_only", False),
            )
        )

    def take(self) -> list[LogLine]:
        return [self._kept.popleft() for _ in range(len(self._kept))]


def _print_to(path: str | None) -> None:
    """What users' functions and libraries print goes into the run's folder."""
    if path is None or not Path(path).parent.is_dir():
        return
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)


def _sendable(made: MadeGroup) -> MadeGroup:
    """With bytes that Ray carries outside of its pickles: they are not copied when they are
    read."""

    def carried(group: EncodedGroup | None) -> EncodedGroup | None:
        if group is None:
            return None
        message: Any = np.frombuffer(memoryview(group.message), np.uint8)
        return replace(group, message=message)

    return replace(made, group=carried(made.group), dropped=carried(made.dropped))


def _broken(error: Exception) -> Broken:
    known = isinstance(error, SlipstreamError)
    return Broken(
        kind=type(error) if known else GenerateError,
        text=str(error) if known else f"{type(error).__name__}: {error}",
        notes=tuple(getattr(error, "__notes__", ())),
        traceback="".join(traceback.format_exception(error)),
    )
