"""Five faults in a real run; `python -m tests.chaos.real_faults` throws thirty and more."""

from __future__ import annotations

import pytest

from tests.chaos.real_faults import real_faults


@pytest.mark.slow
@pytest.mark.alone
def test_a_real_run_outlives_what_is_done_to_it_and_its_account_is_exact() -> None:
    # seed 8: a scheduler, an engine's host, a rollout worker and the learner's rank are killed, a
    # worker is stopped
    found = real_faults(faults=5, seed=8, longest_stop=9.0)
    assert found["problems"] == []
    assert sum(map(len, found["seconds"].values())) == 5
