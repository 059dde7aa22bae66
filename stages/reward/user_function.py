"""A user's reward function, and where it runs: an async one on the event loop, a plain one in a
worker process that can be killed at its deadline."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from configs.hooks import HOOKS, load_hook
from pipeline.core.types import Sample, Status, VersionSpan
from pipeline.core.user_errors import log_traceback, told
from stages.reward import worker
from stages.reward.loop_guard import GUARD
from stages.reward.pool import Overdue, WorkerPool, in_thread

logger = logging.getLogger(__name__)


# fields of a sample whose values JSON has no type for
_MADE_OF: dict[str, Callable[[Any], Any]] = {
    "status": Status,
    "weight_versions": lambda spans: [VersionSpan(*span) for span in spans],
    "rollout_routed_experts": lambda nested: None if nested is None else np.asarray(nested),
}


class UserError(Exception):
    """What the function raised in another process: its type, words and line."""


class UserFunction:
    """`await function(subject)`: what the user's function returns for a sample, or a group's list.

    Raises Overdue after the deadline, and what the function raised: itself with a note of its line,
    or, from another process, a UserError that says it."""

    def __init__(
        self, spec: str, args: SimpleNamespace, workers: WorkerPool, timeout_seconds: float
    ) -> None:
        """Raises ConfigError when `spec` names no function."""
        self._spec, self._args, self._workers = spec, args, workers
        self._seconds = timeout_seconds
        self._function = load_hook(worker.HOOK, spec)
        self._file = _file_of(self._function)
        self._run: Callable[[Any], Awaitable[Any]] = (
            self._on_loop if _is_async(self._function) else self._in_worker
        )

    async def __call__(self, subject: Sample | list[Sample]) -> Any:
        return await self._run(subject)

    async def _on_loop(self, subject: Any) -> Any:
        async with self._told():
            return await GUARD.run(self._awaited(subject), self._spec, self._file, self._seconds)

    async def _awaited(self, subject: Any) -> Any:
        result = self._function(self._args, subject)
        return await result if isinstance(result, Awaitable) else result

    async def _in_thread(self, subject: Any) -> Any:
        async with self._told():
            return await in_thread(self._function, self._args, subject)

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        """Around a call in this process: Overdue when its time is up; what it raises has a note of
        its line."""
        deadline = asyncio.timeout(self._seconds)
        try:
            async with deadline:
                with _told_unless_overdue(self._function):
                    yield
        except Overdue:
            raise
        except Exception as error:  # user code may raise anything, its own TimeoutError too
            if deadline.expired():
                raise Overdue(
                    f"no score after {self._seconds:g} s (--reward-timeout-seconds)"
                ) from error
            raise

    async def _in_worker(self, subject: Any) -> Any:
        try:
            request = pickle.dumps((self._args, subject))
        except Exception as error:  # pickle raises whatever an object's own code does
            return await self._instead(subject, f"its sample cannot be sent there ({error})")
        load = (worker.load, (self._spec,))
        answer = await self._workers.run(
            worker.call, (self._spec, request), self._seconds, prepare=load
        )
        reply = worker.Reply.from_json(answer)
        if reply.unfit is not None:
            return await self._instead(subject, f"it cannot be imported there ({reply.unfit})")
        if reply.awaitable:
            self._run = self._on_loop
            return await self._on_loop(subject)
        if reply.error is not None:
            log_traceback(reply.error, reply.traceback)
            raise UserError(reply.error)
        samples = subject if isinstance(subject, list) else [subject]
        for sample, changes in zip(samples, reply.changes, strict=True):
            for name, value in changes.items():
                setattr(sample, name, _MADE_OF[name](value) if name in _MADE_OF else value)
        return reply.reward

    async def _instead(self, subject: Any, reason: str) -> Any:
        """In a thread, which nobody can stop."""
        if self._run == self._in_worker:
            logger.warning(
                "the reward function %s runs in threads, not in a process of its own: %s. One that"
                " hangs is given up after --reward-timeout-seconds, but goes on",
                self._spec,
                reason,
            )
            self._run = self._in_thread
        return await self._in_thread(subject)


@contextmanager
def _told_unless_overdue(function: Callable[..., Any]) -> Iterator[None]:
    """An answer that came too late is no failure of the function's."""
    overdue: Overdue | None = None
    with told(function, HOOKS[worker.HOOK].flag):
        try:
            yield
        except Overdue as error:
            overdue = error
    if overdue is not None:
        raise overdue


def _is_async(function: Callable[..., Any]) -> bool:
    """Is it `async def`, behind functools.partial too, or an object whose __call__ is?"""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _file_of(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_filename if code is not None else ""
