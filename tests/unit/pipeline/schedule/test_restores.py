"""How often a learner is restored, and under which versions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schedule.restores import Restore, RestoreLimit


@given(
    most=st.integers(0, 5),
    losses=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), max_size=9),
)
def test_versions_only_rise_and_the_limit_is_kept(
    most: int, losses: list[tuple[int, int, int]]
) -> None:
    """Each loss: (rollouts since the one before, of these saved, pushes begun)."""
    limit, saved, trained, version, restores = RestoreLimit(most), 0, 0, 0, []
    for more, kept, pushes in losses:
        trained, version = trained + more, version + pushes
        saved = min(trained, saved + min(kept, more))
        found = limit.after_loss(num_trained=trained, num_saved=saved, highest_version=version)
        if found is None:
            assert limit.num_restores == len(restores) == most
            continue
        assert found.policy_version > version
        assert found.num_trained == saved and found.num_trained + found.num_lost == trained
        restores.append(found)
        trained, version = saved, found.policy_version
    assert [r.number for r in restores] == list(range(1, min(most, len(losses)) + 1))
    versions = [r.policy_version for r in restores]
    assert versions == sorted(set(versions))


def test_one_restore() -> None:
    assert RestoreLimit(1).after_loss(num_trained=7, num_saved=4, highest_version=9) == Restore(
        number=1, num_trained=4, num_lost=3, policy_version=10
    )


def test_more_cannot_be_saved_than_was_trained() -> None:
    with pytest.raises(AssertionError):
        RestoreLimit(1).after_loss(num_trained=3, num_saved=4, highest_version=0)
