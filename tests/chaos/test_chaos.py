"""Twenty kills of the mock pipeline, and as many with replay and retried prompts; `python -m
tests.chaos.chaos` does more of them, and with --real on SGLang and Megatron."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import chaos

REPLAY = (
    "--max-times-sampled",
    "2",
    "--buffer-selector",
    "prioritized",
    "--stale-policy",
    "retry",
    "--mock-length-sigma",
    "1.2",
)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), REPLAY], ids=["plain", "replay"])
def test_twenty_kills_lose_nothing_and_train_nothing_twice(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    found = chaos(
        tmp_path, kills=20, real=False, seed=1, num_rollout=600 if not more else 400, more=more
    )
    assert found["kills"] == 20 and found["problems"] == []
    assert bool(found["replayed"]) == bool(more)
