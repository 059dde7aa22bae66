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


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code that waits."""

    file: str
    line: int
    function: str

    @classmethod
    def of(cls, frame: FrameType) -> Place:
        return cls(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)

    @property
    def of_the_library(self) -> bool:
        path = Path(self.file)
        return path.is_relative_to(_LIBRARY) and "site-packages" not in path.parts

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line} ({self.function})"


def await_chain(task: asyncio.Task[Any]) -> list[Place]:
    """From the outermost line to the innermost. A task that waits for others (of a TaskGroup, or
    in `asyncio.wait`) goes on with the first of them that is not done. Call it on the task's loop.
    """
    places: list[Place] = []
    seen: set[int] = set()
    current: Any = task.get_coro()
    while current is not None and len(places) < _MOST_FRAMES:
        frame = _attribute(current, "frame")
        if frame is not None:
            places.append(Place.of(frame))
        below = _attribute(current, "await")
        if frame is not None and (below is None or _attribute(below, "frame") is None):
            child = _below(frame)
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                below = child
        current = below
    return places


def where_it_stands(task: asyncio.Task[Any]) -> str:
    """The last of the chain in words: "lock.py:3 (acquire), in agent.py:17 (generate)"."""
    return describe(await_chain(task))


def describe(places: Iterable[Place]) -> str:
    """The innermost lines, innermost first; of Python's own library only the last."""
    inward = list(places)
    if not inward:
        return "a task that has not begun"
    last, rest = inward[-1], [p for p in inward[:-1] if not p.of_the_library]
    return ", in ".join(map(str, [last, *reversed(rest[-_SHOWN:])]))


def _attribute(awaitable: Any, name: str) -> Any:
    """cr_frame, gi_frame or ag_frame: coroutines, generators and asynchronous generators name it
    each their own way."""
    for prefix in ("cr", "gi", "ag"):
        value = getattr(awaitable, f"{prefix}_{name}", None)
        if value is not None:
            return value
    return None


def _below(frame: FrameType) -> Any:
    """The coroutine on which this frame depends, though Python knows of no await: of a task that
    it waits for, or one that an object drives by hand and calls `driven`."""
    task = next((t for t in _awaited_tasks(frame) if not t.done()), None)
    return getattr(frame.f_locals.get("self"), "driven", None) if task is None else task.get_coro()


def _awaited_tasks(frame: FrameType) -> list[asyncio.Task[Any]]:
    """The tasks that this frame of asyncio's own waits for, oldest first."""
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


def _short(file: str) -> str:
    path = Path(file)
    for root in (_ROOT, _LIBRARY, Path.cwd()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return file
