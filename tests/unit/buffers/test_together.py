"""Groups that are read together come back as those that are read one by one; rows of numbers go
into Arrow by the short way or by numpy's, with the same result."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buffers.arrays import large_list, make_array
from buffers.decoding import from_batch, from_batches
from buffers.encoding import to_batch
from pipeline.core.types import Group
from tests.property.strategies import groups
from tests.property.test_buffer_encoding import plain


@given(st.lists(groups(), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_groups_read_together_are_those_read_alone(stored: list[Group]) -> None:
    """Where some have a field that others have not, too."""
    batches = [to_batch(group) for group in stored]
    together = from_batches(batches)
    assert [plain(g) for g in together] == [plain(from_batch(b)) for b in batches]
    assert [plain(g) for g in together] == [plain(g) for g in stored]


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.uint8])
def test_rows_of_any_numbers(dtype: type) -> None:
    dtype = np.dtype(dtype)
    rows = [[1, 0, 1], [], [np.int64(1)], [1.0, True]]
    if dtype == np.uint8:
        rows.pop()  # a mask of fractions is refused
    expected = [np.asarray(row, dtype).tolist() for row in rows]
    assert large_list(rows, dtype).to_pylist() == expected
    arrays = [np.asarray(row, dtype) for row in rows]
    assert large_list(arrays, dtype).to_pylist() == expected
    assert large_list([rows[0], None], dtype).to_pylist() == [expected[0], None]


@pytest.mark.parametrize(
    ("row", "dtype"),
    [([2**70], np.int64), ([0.5], np.uint8), (["x"], np.float32), ([300], np.uint8)],
)
def test_what_does_not_fit_is_refused(row: list, dtype: type) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        large_list([[1], row], np.dtype(dtype))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([None] * 9, pa.large_string()),
        ([True] * 9, pa.bool_()),
        ([False] * 9, pa.bool_()),
        ([True, False], pa.bool_()),
        (["stop"] * 3, pa.string()),
        (["stop", "é", ""], pa.string()),
        (["x" * 100, "\U0001f600"], pa.large_string()),
        (["a", None], pa.large_string()),
        ([1, 2], pa.int64()),
        ([1, None], pa.int64()),
        ([0.5, 1.5], pa.float64()),
    ],
)
def test_short_ways_give_what_arrow_gives(values: list, dtype: pa.DataType) -> None:
    made = make_array(values, dtype)
    made.validate(full=True)
    assert made.equals(pa.array(values, dtype)) and made.type == dtype


@pytest.mark.parametrize("values", [["a", "a"], [True, True], ["a", "b"]])
def test_no_short_way_for_what_the_column_cannot_hold(values: list) -> None:
    """A text or a truth value in a column of numbers."""
    with pytest.raises((pa.ArrowException, TypeError, ValueError)):
        make_array(values, pa.int64())
