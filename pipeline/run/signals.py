"""Signals heard on a thread of their own: an event loop that is blocked hears nothing.

Python's own part of a signal (written in C) puts the signal's number into a socket at once,
whatever the main thread is doing; a thread reads it from there."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

_TURN_SECONDS = 0.02


class SignalThread:
    """`start` on the main thread; `heard(number)` is called on a thread for every signal."""

    def __init__(self, numbers: Collection[signal.Signals], heard: Callable[[int], None]) -> None:
        self._numbers, self._heard = frozenset(numbers), heard
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup_before = -1
        self._read: socket.socket | None = None
        self._write: socket.socket | None = None
        self._thread: threading.Thread | None = None
        # set by whoever wants the main thread to do nothing more than wait for the end
        self.leaving = threading.Event()

    def start(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # an event loop has its own here, which it needs for handlers of its own only
        self._wakeup_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in self._numbers:
            self._before[number] = signal.signal(number, self._give_way)
            signal.siginterrupt(number, False)  # a call that waits goes on, as under an event loop
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def stop(self, handler: signal.Handlers | None = None) -> None:
        """Nobody listens any more. `handler`: of the signals from now on; by default what was."""
        for number, before in self._before.items():
            signal.signal(number, before if handler is None else handler)
        self._before.clear()
        if self._thread is None:
            return
        assert self._read is not None and self._write is not None
        signal.set_wakeup_fd(self._wakeup_before)
        self._write.close()  # the thread reads the end
        self._thread.join()
        self._read.close()
        self._thread = None

    def _listen(self) -> None:
        assert self._read is not None
        while numbers := self._read.recv(64):
            for number in numbers:
                if number in self._numbers:
                    self._heard(number)

    def _give_way(self, number: int, frame: FrameType | None) -> None:
        """On the main thread. A function that computes in C (a regular expression) comes here and
        nowhere else: let the thread have its turn, and all turns when the process is leaving."""
        time.sleep(_TURN_SECONDS)
        while self.leaving.is_set():
            time.sleep(_TURN_SECONDS)
