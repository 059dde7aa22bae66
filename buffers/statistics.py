"""What the buffer says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStatistics:
    """What both sides may want to know.

    Counts are of groups; seconds are summed over all who waited, since the start.
    """

    num_generating: int  # admitted, not put yet
    num_ready: int  # put, not taken yet
    num_replayable: int  # taken before, and may be again
    num_limited: int  # of the generating: complete, waiting at the byte budget
    num_bytes: int  # on disk and not taken yet
    num_segments: int
    num_put: int
    num_taken: int  # for the first time
    num_replayed: int
    num_discarded: Mapping[str, int]  # by reason
    # response tokens -> samples taken for the first time; with a --stale-policy but wait
    trained_lengths: Mapping[int, int]
    removed_lengths: Mapping[int, int]  # ... and samples that missed their deadline
    admit_wait_seconds: float  # the generating side waited for a rollout's release
    put_wait_seconds: float  # the generating side waited at the byte budget
    take_wait_seconds: float  # the learner waited for groups
    staleness_max: int  # of any token consumed so far, in policy versions
    staleness_bound: int
