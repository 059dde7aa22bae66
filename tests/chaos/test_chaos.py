"""Twenty kills of the mock pipeline, two of the real one: see chaos.py for more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import chaos


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_train_nothing_twice(tmp_path: Path) -> None:
    found = chaos(tmp_path, kills=20, real=False, seed=1, num_rollout=80)
    assert found["kills"] == 20 and found["problems"] == []
