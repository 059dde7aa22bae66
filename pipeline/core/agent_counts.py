"""What agents leave in their samples' metadata, for the run's counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.core.types import Sample

AGENT = "agent"  # the key in sample.metadata
AGENT_COUNTERS = ("tool_calls", "tool_calls_failed", "tool_outputs_cut", "agent_forks")


def agent_counts(samples: Sequence[Sample]) -> Counter[str]:
    """How many there were of each of `AGENT_COUNTERS`. The parts of one trajectory say the same,
    and are counted once."""
    counts = Counter[str]()
    for sample in samples:
        said = sample.metadata.get(AGENT)
        if not isinstance(said, dict) or said.get("part") != 0:
            continue
        errors = said.get("errors") or {}
        for name, count in zip(
            AGENT_COUNTERS,
            (said["calls"], sum(errors.values()), said.get("cut_outputs", 0), said["forks"]),
            strict=True,
        ):
            if count:
                counts[name] += count
    return counts
