"""A complete group in the bytes that the replay buffer keeps, and what must be known of it without
reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedGroup:
    """Made where the group was generated. Whoever stores it looks at the small fields and appends
    the bytes."""

    group_index: int
    deadline: int  # the rollout by which it must be consumed
    message: Buffer  # one Arrow IPC message with its checksum (buffers/segments.py)
    response_lengths: tuple[int, ...]  # of every sample, in tokens
    oldest_version: int | None  # that sampled any of its tokens
    priority: float  # for the selector `prioritized`

    @property
    def num_bytes(self) -> int:
        return memoryview(self.message).nbytes
