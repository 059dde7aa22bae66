"""--fixed-staleness, driven at random: whatever finishes first, rollout r is trained on the groups
that were admitted r-th, and they are exactly K versions old."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from buffers.policy import make_decisions
from configs.schema import AsyncConfig
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.deadlines import Wait


@given(
    P=st.integers(1, 4),
    K=st.integers(0, 5),
    rollouts=st.integers(1, 12),
    moves=st.randoms(use_true_random=False),
)
def test_every_rollout_is_k_versions_old(P: int, K: int, rollouts: int, moves: Random) -> None:
    clock = RolloutClock(
        rollout_batch_size=P,
        async_buffer_size=K,
        update_weights_interval=1,
        num_rollout=rollouts,
        max_staleness=K,
    )
    config = AsyncConfig(async_buffer_size=K, fixed_staleness=True)
    decisions = make_decisions(config, clock, seed=moves.randrange(1000))
    served = 0  # what the engines have
    staged = False  # a push that they have not
    oldest: dict[int, int] = {}
    newest: dict[int, int] = {}
    generating: list[int] = []
    taken: list[list[int]] = []
    while len(taken) < rollouts or staged:
        may = []
        if decisions.may_admit():
            may.append("admit")
        if generating:
            may.append("finish")
        if staged and decisions.settled:
            may.append("push")
        if not staged and len(taken) < rollouts:  # one push at a time
            may.append("train")
        match moves.choice(may):
            case "admit":
                group = decisions.admit().group_index
                generating.append(group)
                oldest[group] = served
            case "finish":
                group = generating.pop(moves.randrange(len(generating)))
                newest[group] = served
                decisions.ready(group, oldest_version=oldest[group])
            case "push":
                served, staged = served + 1, False
                clock.pushed()
            case "train":
                rollout = len(taken)
                choice = decisions.choose(rollout)
                if isinstance(choice, Wait):
                    assert generating or decisions.may_admit(), "it waits for nothing"
                    continue
                decisions.consume(rollout, choice.fresh_indices, [])
                clock.trained(rollout)
                taken.append(choice.fresh_indices)
                staged = clock.push_due(rollout)
    for rollout, groups in enumerate(taken):
        assert groups == list(range(rollout * P, (rollout + 1) * P))
        wanted = max(0, rollout - K)
        assert {oldest[g] for g in groups} == {newest[g] for g in groups} == {wanted}
