"""Twenty kills of the mock pipeline; `python -m tests.chaos.chaos` does more of them, and with --real on SGLang and Megatron."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.chaos import chaos


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_train_nothing_twice(tmp_path: Path) -> None:
    found = chaos(tmp_path, kills=20, real=False, seed=1, num_rollout=600)
    assert found["kills"] == 20 and found["problems"] == []
