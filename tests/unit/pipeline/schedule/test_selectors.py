"""Random selectors: the chances are those they say, also for candidates that join between two
draws."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.schedule.replay_pool import Entry, ReplayPool
from pipeline.schedule.selectors import Candidate, Draw, Selector, make_selector

ROLLOUTS = 4000


def candidates(priorities: list[float]) -> list[Candidate]:
    return [Candidate(i, 9, i, p) for i, p in enumerate(priorities)]


def first_two(
    selector: Selector, groups: list[Candidate], rollout: int
) -> tuple[tuple[int, float], tuple[int, float]]:
    draw = Draw(selector, rollout)
    for c in groups:
        draw.push(c)
    return tuple(draw.pop()), tuple(draw.pop())  # type: ignore[return-value]


def test_prioritized_draws_in_proportion_to_priority_to_the_exponent() -> None:
    groups = candidates([1.0, 4.0, 9.0])  # with exponent 1/2: 1, 2, 3 of 6
    selector = make_selector("prioritized", seed=7, exponent=0.5)
    firsts = Counter[int]()
    seconds_after_2 = Counter[int]()
    for rollout in range(ROLLOUTS):
        (a, p_a), (b, p_b) = first_two(selector, groups, rollout)
        assert p_a == pytest.approx({0: 1 / 6, 1: 2 / 6, 2: 3 / 6}[a])
        firsts[a] += 1
        if a == 2:
            assert p_b == pytest.approx({0: 1 / 3, 1: 2 / 3}[b])
            seconds_after_2[b] += 1
    for group, share in ((0, 1 / 6), (1, 2 / 6), (2, 3 / 6)):
        assert firsts[group] / ROLLOUTS == pytest.approx(share, abs=0.03)
    assert seconds_after_2[0] / sum(seconds_after_2.values()) == pytest.approx(1 / 3, abs=0.04)


def test_who_joins_between_two_draws_has_no_better_chance() -> None:
    selector, joined = make_selector("uniform", seed=3), Counter[int]()
    for rollout in range(ROLLOUTS):
        draw = Draw(selector, rollout)
        for c in candidates([1, 1, 1])[:2]:
            draw.push(c)
        first = draw.pop()
        assert first.probability == pytest.approx(1 / 2)
        draw.push(Candidate(2, 9, 2))
        second = draw.pop()
        assert second.probability == pytest.approx(1 / 2)
        joined[second.group_index] += 1
    assert joined[2] / ROLLOUTS == pytest.approx(1 / 2, abs=0.03)


def test_exponent_zero_is_uniform_and_priority_zero_is_not_never() -> None:
    groups = candidates([0.0, 5.0])
    flat = Counter(
        first_two(make_selector("prioritized", exponent=0.0), groups, r)[0][0] for r in range(1000)
    )
    assert 430 <= flat[0] <= 570
    (_, _), (last, probability) = first_two(make_selector("prioritized", exponent=1.0), groups, 0)
    assert (last, probability) == (0, 1.0)


@pytest.mark.parametrize("name", ["deadline", "fifo", "lifo"])
def test_what_is_not_random_has_probability_one(name: str) -> None:
    assert all(p == 1.0 for _, p in first_two(make_selector(name), candidates([1.0, 2.0, 3.0]), 0))


# -- the pool of what may be trained on again


def entry(group: int, *, version: int = 0, times: int = 1) -> Entry:
    return Entry(candidate=Candidate(group, -1, group), oldest_version=version, times_sampled=times)


def pool(most: int, staleness: int = 3) -> ReplayPool:
    return ReplayPool(
        selector=make_selector("fifo"), max_times_sampled=most, max_staleness=staleness
    )


def test_a_group_leaves_the_pool_after_its_last_time() -> None:
    p = pool(3)
    assert p.add(entry(0)) and p.add(entry(1, times=2)) and not p.add(entry(2, times=3))
    assert [g for g, _ in p.choose(1, 5, 0)] == [0, 1]
    assert [e.candidate.group_index for e in p.sampled([0, 1])] == [1]
    assert [g for g, _ in p.choose(2, 5, 0)] == [0] and p[0].times_sampled == 2
    assert [e.candidate.group_index for e in p.sampled([0])] == [0]
    assert len(p) == 0


def test_with_max_times_sampled_one_nothing_is_ever_in_the_pool() -> None:
    assert not pool(1).add(entry(0))


def test_what_is_staler_than_the_bound_expires() -> None:
    p = pool(9, staleness=2)
    p.add(entry(0, version=1))
    p.add(entry(1, version=2))
    assert [e.candidate.group_index for e in p.expire(3)] == []
    assert [g for g, _ in p.choose(4, 2, 4)] == [1]
    assert [e.candidate.group_index for e in p.expire(4)] == [0]
    assert [g for g, _ in p.choose(4, 2, 4)] == [1]
