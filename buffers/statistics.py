"""What the buffer reports of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.core.time import TimeSource
from pipeline.schedule.decisions import Decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStatistics:
    """The figures that either side may want to know.

    Counts are of groups; seconds are summed over all who waited, since the start."""

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
    num_samples_filtered: int  # of groups that --buffer-filter-path removed
    admit_wait_seconds: float  # the generating side waited for a rollout's release
    put_wait_seconds: float  # the generating side waited at the byte budget
    take_wait_seconds: float  # the learner waited for groups
    staleness_max: int  # of any token consumed so far, in policy versions
    staleness_bound: int


class BufferCounts:
    """Counts of groups and sums of waits since the start, which the buffer raises."""

    def __init__(self, time: TimeSource) -> None:
        self._time = time
        self._waits = {"admit": 0.0, "put": 0.0, "take": 0.0}
        self.num_put = self.num_taken = self.num_replayed = self.num_limited = 0
        self.num_samples_filtered = 0
        self.trained_lengths, self.removed_lengths = Counter[int](), Counter[int]()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Counts the seconds spent inside as a wait of `admit`, `put` or `take`."""
        start = self._time.now()
        try:
            yield
        finally:
            self._waits[what] += self._time.now() - start

    def statistics(
        self, decisions: Decisions, *, num_bytes: int, num_segments: int, staleness_max: int
    ) -> BufferStatistics:
        return BufferStatistics(
            num_generating=decisions.num_generating,
            num_ready=decisions.num_ready,
            num_replayable=decisions.num_replayable,
            num_limited=self.num_limited,
            num_bytes=num_bytes,
            num_segments=num_segments,
            num_put=self.num_put,
            num_taken=self.num_taken,
            num_replayed=self.num_replayed,
            num_discarded=decisions.clock.given_back,
            trained_lengths=self.trained_lengths,
            removed_lengths=self.removed_lengths,
            num_samples_filtered=self.num_samples_filtered,
            admit_wait_seconds=self._waits["admit"],
            put_wait_seconds=self._waits["put"],
            take_wait_seconds=self._waits["take"],
            staleness_max=staleness_max,
            staleness_bound=decisions.clock.max_staleness,
        )
