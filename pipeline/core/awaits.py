"""Where a task stands: the chain of awaits from its first line down to the one that it waits at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_LIBRARY = Path(asyncio.__file__).resolve().parents[1]
_MOST_FRAMES = 100
_SHOWN = 3
_NOTHING = object()  # awaited by a frame that waits for a future


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code that waits."""

    file: str
    line: int
    function: str
    engine: str | None = None  # with which the function is dealing

    @classmethod
    def of(cls, frame: FrameType) -> Place:
        code, engine = frame.f_code, frame.f_locals.get("endpoint")
        named = engine if isinstance(engine, str) else None
        return cls(code.co_filename, frame.f_lineno, code.co_name, named)

    @property
    def of_the_library(self) -> bool:
        path = Path(self.file)
        return path.is_relative_to(_LIBRARY) and "site-packages" not in path.parts

    @property
    def installed(self) -> bool:
        """Does the file belong to Python or to an installed package?"""
        return self.of_the_library or "site-packages" in Path(self.file).parts

    def __str__(self) -> str:
        engine = "" if self.engine is None else f", engine {self.engine}"
        return f"{_short(self.file)}:{self.line} ({self.function}{engine})"


def await_chain(task: asyncio.Task[Any]) -> list[Place]:
    """The places from the outermost line to the innermost. A task that waits for others (another
    task, a TaskGroup, `asyncio.gather`, `asyncio.wait`) is followed into the first of them that is
    not done. Call it on the task's loop."""
    places: list[Place] = []
    seen: set[int] = set()
    of_task: asyncio.Task[Any] | None = task
    while of_task is not None and id(of_task) not in seen:
        seen.add(id(of_task))
        innermost = _descend(of_task.get_coro(), places)
        waited = [] if innermost is None else _awaited_tasks(innermost)
        waited += _awaited_futures(of_task)
        of_task = next((t for t in waited if not t.done()), None)
    return places


def _descend(awaitable: Any, places: list[Place]) -> FrameType | None:
    """Appends the frames of one task and returns the innermost of them."""
    innermost = None
    while awaitable is not None and len(places) < _MOST_FRAMES:
        frame = _attribute(awaitable, "frame")
        if frame is None and innermost is not None:
            # an object may drive a coroutine by hand; it calls it `driven`
            awaitable = getattr(innermost.f_locals.get("self"), "driven", None)
            frame = _attribute(awaitable, "frame")
        if frame is None or frame is innermost:
            break
        places.append(Place.of(frame))
        innermost, awaitable = frame, _attribute(awaitable, "await") or _NOTHING
    return innermost


def where_it_stands(task: asyncio.Task[Any]) -> str:
    """The last places of the chain in words: "lock.py:3 (acquire), in agent.py:17 (generate)"."""
    return describe(await_chain(task))


def describe(places: Iterable[Place]) -> str:
    """The innermost lines, the innermost first; of Python's library and of packages only the last
    one."""
    inward = list(places)
    if not inward:
        return "a task that has not begun"
    last, rest = inward[-1], [p for p in inward[:-1] if not p.installed]
    return ", in ".join(map(str, [last, *reversed(rest[-_SHOWN:])]))


def _attribute(awaitable: Any, name: str) -> Any:
    """The object's cr_, gi_ or ag_ attribute: coroutines, generators and asynchronous generators
    each have a prefix of their own."""
    for prefix in ("cr", "gi", "ag"):
        value = getattr(awaitable, f"{prefix}_{name}", None)
        if value is not None:
            return value
    return None


def _awaited_tasks(frame: FrameType) -> list[asyncio.Task[Any]]:
    """The tasks that this frame of asyncio's own code waits for, oldest first."""
    if not Place.of(frame).of_the_library:
        return []
    values = frame.f_locals
    group = values.get("self")
    if isinstance(group, asyncio.TaskGroup):
        waited = getattr(group, "_tasks", ())
    else:
        waited = values.get("fs") or ()
    tasks = [t for t in waited if isinstance(t, asyncio.Task)]
    return sorted(tasks, key=lambda t: (len(t.get_name()), t.get_name()))  # Task-9, Task-10


def _awaited_futures(task: asyncio.Task[Any]) -> list[asyncio.Task[Any]]:
    """The task that this one awaits directly, or those of its `asyncio.gather`."""
    future = getattr(task, "_fut_waiter", None)
    if isinstance(future, asyncio.Task):
        return [future]
    return [t for t in getattr(future, "_children", ()) if isinstance(t, asyncio.Task)]


def _short(file: str) -> str:
    path = Path(file)
    for root in (_ROOT, _LIBRARY, Path.cwd()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return file
