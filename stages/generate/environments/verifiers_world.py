"""Where environments of verifiers run: on one event loop in a thread of its own, which their
blocking tools and reward functions may hold up without holding up a run."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from pipeline.core.errors import SlipstreamError, UserFunctionError
from pipeline.core.user_errors import ANY_FAILURE, in_words

T = TypeVar("T")
_FAILED: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("failed", default=None)
# how its rubrics say that a reward function has raised; they go on with the reward 0
_SAYS = "Error calling reward function", "Error calling group reward function"


async def in_world(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, done there. Cancelled, it is cancelled there."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_guarded(work), _world()))


@contextmanager
def failed_scorers() -> Iterator[list[str]]:
    """What reward functions have raised within, in the words of verifiers's log."""
    _listen()
    failed: list[str] = []
    token = _FAILED.set(failed)
    try:
        yield failed
    finally:
        _FAILED.reset(token)


async def _guarded(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except SlipstreamError:
        raise
    except ANY_FAILURE as error:
        raise UserFunctionError(in_words(error)) from error


@lru_cache(maxsize=1)
def _world() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()

    def run() -> None:
        asyncio.set_event_loop(loop)
        while True:
            try:
                loop.run_forever()
            except ANY_FAILURE:  # of a task, to whom it has been told: others go on
                continue

    threading.Thread(target=run, name="environments of verifiers", daemon=True).start()
    return loop


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        failed, text = _FAILED.get(), record.getMessage()
        if failed is not None and text.startswith(_SAYS):
            failed.append(text)


@lru_cache(maxsize=1)
def _listen() -> None:
    logging.getLogger("verifiers").addHandler(_Listener(logging.ERROR))
