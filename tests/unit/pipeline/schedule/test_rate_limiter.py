"""The rate limiter: what it allows, what it refuses to be, and that two sides under it never wait
for each other."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.core.errors import ConfigError
from pipeline.schedule.rate_limiter import RateLimiter


def sample_to_insert_ratio(
    *, samples_per_insert: float, min_size_to_sample: int, error_buffer: float
) -> RateLimiter:
    """Reverb's SampleToInsertRatio: diff within `error_buffer` of samples_per_insert *
    min_size_to_sample."""
    centre = samples_per_insert * min_size_to_sample
    return RateLimiter(
        samples_per_insert=samples_per_insert,
        min_size_to_sample=min_size_to_sample,
        min_diff=centre - error_buffer,
        max_diff=centre + error_buffer,
    )


def test_the_window_of_k_plus_one_rollouts() -> None:
    limiter = RateLimiter.rollouts(fresh=4, buffer_size=2)
    assert [limiter.can_insert(inserts=n, samples=0) for n in (0, 11, 12)] == [True, True, False]
    assert [limiter.can_insert(inserts=n, samples=4) for n in (15, 16)] == [True, False]


def test_with_two_samples_an_insert_half_as_many_are_admitted() -> None:
    limiter = RateLimiter.rollouts(fresh=4, samples_per_insert=2.0, buffer_size=1)
    assert limiter.batch == 8
    assert [limiter.can_insert(inserts=n, samples=0) for n in (7, 8)] == [True, False]
    assert [limiter.can_insert(inserts=n, samples=8) for n in (11, 12)] == [True, False]
    assert limiter.can_sample(inserts=4, samples=0, size=4)
    assert not limiter.can_sample(inserts=4, samples=8, size=4), "these four have had their share"


def test_below_the_min_size_nothing_is_sampled_and_everything_inserted() -> None:
    limiter = sample_to_insert_ratio(
        samples_per_insert=1.0, min_size_to_sample=10, error_buffer=2.0
    )
    assert limiter.can_insert(inserts=9, samples=0)
    assert not limiter.can_sample(inserts=9, samples=0, size=9)
    assert limiter.can_sample(inserts=10, samples=0, size=10)
    assert not limiter.can_insert(inserts=12, samples=0), "diff would be 13, the upper end is 12"
    assert not limiter.can_sample(inserts=10, samples=2, size=10), (
        "diff would be 7, the lower end is 8"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_per_insert": 0.0}, "above 0"),
        ({"samples_per_insert": float("nan")}, "above 0"),
        ({"min_size_to_sample": 0}, "at least 1"),
        ({"max_diff": 3.0, "batch": 4}, "too narrow for batches of 4 at 1 samples an insert"),
        ({"max_diff": 4.0, "batch": 4, "samples_per_insert": 1.5}, "Widen it to 5.5"),
    ],
)
def test_a_limiter_that_would_block_both_sides_cannot_be_made(
    changes: dict[str, float], message: str
) -> None:
    good = {
        "samples_per_insert": 1.0,
        "min_size_to_sample": 1,
        "min_diff": 0.0,
        "max_diff": 8.0,
        "batch": 1,
    }
    RateLimiter(**good)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        RateLimiter(**{**good, **changes})  # type: ignore[arg-type]


def test_reverbs_error_buffer_must_hold_an_insert() -> None:
    with pytest.raises(ConfigError, match="too narrow"):
        sample_to_insert_ratio(samples_per_insert=4.0, min_size_to_sample=1, error_buffer=1.0)


class TwoSides(RuleBasedStateMachine):
    """An inserter and a sampler, each as greedy as it likes."""

    @initialize(
        fresh=st.integers(1, 6),
        per_insert=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
        k=st.integers(0, 4),
        minimum=st.integers(1, 12),
    )
    def begin(self, fresh: int, per_insert: float, k: int, minimum: int) -> None:
        while not (fresh * per_insert).is_integer():
            fresh += 1
        self.limiter = RateLimiter.rollouts(
            fresh=fresh, samples_per_insert=per_insert, buffer_size=k, min_size_to_sample=minimum
        )
        self.inserts = self.samples = 0

    @rule(count=st.integers(1, 20))
    def insert(self, count: int) -> None:
        for _ in range(count):
            self.inserts += self.limiter.can_insert(inserts=self.inserts, samples=self.samples)

    @rule(count=st.integers(1, 4))
    def sample(self, count: int) -> None:
        for _ in range(count):
            if self.limiter.can_sample(
                inserts=self.inserts, samples=self.samples, size=self.inserts
            ):
                self.samples += self.limiter.batch

    @invariant()
    def somebody_can_move_and_the_ratio_is_kept(self) -> None:
        if not hasattr(self, "limiter"):
            return
        limiter, diff = self.limiter, self.inserts * self.limiter.samples_per_insert - self.samples
        may_insert = limiter.can_insert(inserts=self.inserts, samples=self.samples)
        assert may_insert or limiter.can_sample(
            inserts=self.inserts, samples=self.samples, size=self.inserts
        ), "both sides wait"
        assert diff >= limiter.min_diff
        assert diff <= max(
            limiter.max_diff, limiter.min_size_to_sample * limiter.samples_per_insert
        )


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(max_examples=150, stateful_step_count=30)


@given(st.floats(0.25, 8.0), st.integers(1, 50), st.floats(0.0, 100.0))
@settings(max_examples=200)
def test_whatever_ratio_can_be_made_never_deadlocks(
    per_insert: float, minimum: int, error_buffer: float
) -> None:
    try:
        limiter = sample_to_insert_ratio(
            samples_per_insert=per_insert, min_size_to_sample=minimum, error_buffer=error_buffer
        )
    except ConfigError:
        return
    inserts = samples = 0
    for _ in range(300):
        if limiter.can_sample(inserts=inserts, samples=samples, size=inserts):
            samples += 1
        else:
            assert limiter.can_insert(inserts=inserts, samples=samples), "both sides wait"
            inserts += 1
