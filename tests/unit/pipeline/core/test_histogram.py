"""Histograms of equal bins."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.histogram import NUM_RATIO_BINS, Histogram, ratio_bins


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=50))
def test_every_integer_is_in_the_bin_that_covers_it(values: list[int]) -> None:
    found = Histogram.of_integers(Counter(values))
    assert found is not None
    assert len(found.counts) <= 33
    edges = found.edges
    for i, count in enumerate(found.counts):
        assert count == sum(edges[i] < value < edges[i + 1] for value in values)
    assert Histogram.from_dict(found.to_dict()) == found


def test_few_values_have_a_bin_each() -> None:
    found = Histogram.of_integers({3: 7, 5: 1})
    assert found == Histogram(low=2.5, width=1, counts=(7, 0, 1))
    assert Histogram.of_integers({}) is None


def test_ratio_bins_go_through_a_learners_metrics() -> None:
    counts = [float(i) for i in range(NUM_RATIO_BINS)]
    found = Histogram.of_log_ratio({"loss": 1.0, **ratio_bins(counts)})
    assert found is not None
    assert found.counts == tuple(counts)
    assert found.edges[25] < 0 < found.edges[26] and -found.edges[0] == found.edges[-1]
    assert Histogram.of_log_ratio({"loss": 1.0}) is None
