"""Continuous batching, simulated: how far every request of an engine is. Pure.

All running requests get a token in every step; a step takes the longer, the more of them there are;
those beyond the engine's slots wait in the order of their arrival. (Yu et al. 2022, Orca, OSDI '22,
section 4: iteration-level scheduling.)"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)


@dataclass(order=True, slots=True)
class _Running(Generic[R]):
    end: float  # in steps
    number: int
    start: float = field(compare=False)
    request: R = field(compare=False)


class ContinuousBatch(Generic[R]):
    """Time is given to it, in seconds in which the engine worked. `steps` counts decode steps since
    the beginning; it is not a whole number within one."""

    def __init__(
        self, *, num_slots: int | None, step_seconds: float, step_seconds_per_request: float
    ) -> None:
        """`num_slots` None: any number of requests at once. A step of n requests takes
        step_seconds + n * step_seconds_per_request."""
        self._num_slots = num_slots
        self._base, self._each = step_seconds, step_seconds_per_request
        self._running: list[_Running[R]] = []  # a heap by the step at which they end
        self._waiting: deque[tuple[R, int]] = deque()
        self._count = 0
        self.steps = 0.0

    @property
    def num_running(self) -> int:
        return len(self._running)

    def add(self, request: R, num_tokens: int) -> None:
        """It begins to decode at once, or waits for a slot."""
        self._waiting.append((request, num_tokens))
        self._fill()

    def remove(self, request: R) -> None:
        """It is aborted: its slot is free, or its place in the queue."""
        self._waiting = deque(w for w in self._waiting if w[0] != request)
        self._running = [r for r in self._running if r.request != request]
        heapq.heapify(self._running)
        self._fill()

    def seconds_to_next(self) -> float | None:
        """Until the next request ends, if none comes or goes. None when none runs."""
        if not self._running:
            return None
        return max(0.0, self._running[0].end - self.steps) * self._step_seconds()

    def work(self, seconds: float) -> list[tuple[R, float]]:
        """The engine worked for so long: those that ended, with the step at which each began."""
        ended = []
        while (left := self.seconds_to_next()) is not None and left <= seconds + 1e-9:
            seconds = max(0.0, seconds - left)
            self.steps = max(self.steps, self._running[0].end)
            done = heapq.heappop(self._running)
            ended.append((done.request, done.start))
            self._fill()
        if self._running and (step := self._step_seconds()) > 0:
            self.steps += seconds / step
        return ended

    def _step_seconds(self) -> float:
        return self._base + self._each * len(self._running)

    def _fill(self) -> None:
        while self._waiting and (self._num_slots is None or len(self._running) < self._num_slots):
            request, num_tokens = self._waiting.popleft()
            self._count += 1
            entry = _Running(self.steps + num_tokens, self._count, self.steps, request)
            heapq.heappush(self._running, entry)
