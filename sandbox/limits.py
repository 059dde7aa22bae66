"""What one call may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIB = 1 << 20
LEAST_MEMORY_BYTES = 64 * MIB  # Python and its libraries alone take half of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of one call, all its processes together unless it says otherwise. ValueError for what no
    program could start with."""

    seconds: float = 10.0  # by the clock; and of processor time, of each process
    # the address space of each process, and the resident memory of all (beyond what the warm
    # interpreter has); looked at 20 times a second
    memory_bytes: int = 1024 * MIB
    # the only folder that can be written, which is memory too; beyond memory_bytes
    disk_bytes: int = 64 * MIB
    file_bytes: int = 16 * MIB  # a file's size, stdout's and stderr's too
    output_bytes: int = 1 * MIB  # of each of stdout and stderr, what is given back
    processes: int = 32  # and threads

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"seconds {self.seconds}: expected a number above 0")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least {least}")


_LEAST = {
    "memory_bytes": LEAST_MEMORY_BYTES,
    "disk_bytes": 1 * MIB,
    "file_bytes": 4096,
    "output_bytes": 1,
    "processes": 1,
}
