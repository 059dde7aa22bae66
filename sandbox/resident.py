"""How much memory the programs under a zygote hold, as its owner sees it in /proc."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def can_look() -> bool:
    """Does this kernel say whose children are whose (CONFIG_PROC_CHILDREN)?"""
    me = os.getpid()
    return (_PROC / str(me) / "task" / str(me) / "children").exists()


def resident_bytes(process: int) -> int:
    """Of one process; 0 when it is gone."""
    try:
        return int((_PROC / str(process) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def resident_below(zygote: int) -> int:
    """Bytes of all processes that descend from the zygote, without what each got from it."""
    warm = resident_bytes(zygote)
    return sum(max(0, resident_bytes(process) - warm) for process in _descendants(zygote))


def _descendants(process: int) -> list[int]:
    found, unseen = [], [process]
    while unseen:
        children = _children(unseen.pop())
        found += children
        unseen += children
    return found


def _children(process: int) -> list[int]:
    found: list[int] = []
    try:
        for thread in (_PROC / str(process) / "task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    except OSError:  # it has ended meanwhile
        pass
    return found
