"""Shared memory that a killed process could not give back (see stages/publish/handles.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil

SHM = Path("/dev/shm")


def remove_shared_memory(pids: Iterable[int]) -> None:
    """Removes what torch made for those of these processes that are gone: its files have the
    number of their process in their name. torch's own manager does so too, unless it was killed
    with them.

    For processes of a run that is over: one that still has such a file mapped is ended by torch
    when it lets go of it."""
    for pid in pids:
        if psutil.pid_exists(pid):
            continue
        for path in SHM.glob(f"torch_{pid}_*"):
            with contextlib.suppress(OSError):  # gone meanwhile, or not ours
                path.unlink()
