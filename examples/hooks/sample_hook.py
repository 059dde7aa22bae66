"""A look at every sample before it is scored: what the response repeats is noted in its metadata,
where a reward function, a filter or the log may find it.

--rollout-sample-hook-path examples/hooks/sample_hook.py
"""

from __future__ import annotations

from typing import Any

from slipstream import Sample


def sample_hook(args: Any, sample: Sample, *, evaluation: bool = False) -> None:
    """May be async, and may return another sample.

    None: the one that it was given goes on.
    """
    words = sample.response.split()
    sample.metadata["distinct_words"] = len(set(words)) / len(words) if words else 1.0
