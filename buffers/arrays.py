"""Fast ways between Python and Arrow: arrays of numbers and texts, and numpy views of them."""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

_SHORT = 64  # characters
_CODES = {(int, pa.int64().id): "q", (float, pa.float64().id): "d"}  # of array.array
_TEXT_CODES = {pa.string().id: "i", pa.large_string().id: "q"}  # of their offsets
# of struct, for rows of numbers
_ROW_CODES = {np.dtype(np.int64): "q", np.dtype(np.int32): "i", np.dtype(np.float32): "f"}
_ONE = b"\x01"


@functools.lru_cache(maxsize=1024, typed=True)
def repeated(value: Any, dtype: pa.DataType, length: int) -> pa.Array:
    """Arrays are immutable: all groups may share one. `value`: as `_is_repeatable` says."""
    if value is None:
        return pa.nulls(length, dtype)
    if isinstance(value, bool):
        bits = (b"\xff" if value else b"\x00") * -(-length // 8)
        return pa.Array.from_buffers(dtype, length, [None, pa.py_buffer(bits)])
    return _text_array([value] * length, _TEXT_CODES[dtype.id], dtype)


def make_array(values: list[Any], dtype: pa.DataType) -> pa.Array:
    """pa.array, by a shorter way where there is one: for numbers and texts without nulls, and for
    one short text, truth value or null that is the same in all rows. Most groups consist of these,
    and pa.array costs more than everything else that is done for a small group; its first call
    imports pandas, for half a second in which the event loop stands still."""
    first = values[0]
    kind = type(first)
    if _is_repeatable(first, dtype) and is_one(values):
        return repeated(first, dtype, len(values))
    if len(set(map(type, values))) == 1:
        if (code := _CODES.get((kind, dtype.id))) is not None:
            return number_array(array(code, values), dtype)
        if kind is str and (code := _TEXT_CODES.get(dtype.id)) is not None:
            return _text_array(values, code, dtype)
    return pa.array(values, dtype)


def _is_repeatable(value: Any, dtype: pa.DataType) -> bool:
    if value is None:
        return True
    if type(value) is bool:
        return bool(dtype.id == pa.bool_().id)
    return type(value) is str and len(value) <= _SHORT and dtype.id in _TEXT_CODES


def _text_array(values: list[str], code: str, dtype: pa.DataType) -> pa.Array:
    texts = [value.encode() for value in values]
    ends = array(code, accumulate(map(len, texts), initial=0))
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(dtype, len(values), buffers)


def is_one(values: Sequence[Any]) -> bool:
    """Are all the very same object?"""
    return len(set(map(id, values))) == 1


def number_array(values: Any, dtype: pa.DataType, length: int | None = None) -> pa.Array:
    """An Arrow array over memory that holds its values already. `values`: [n], anything with the
    buffer protocol, one-dimensional and contiguous. `length`: n, where they are mere bytes."""
    length = len(values) if length is None else length
    return pa.Array.from_buffers(dtype, length, [None, pa.py_buffer(values)])


@functools.cache
def _arrow_type(dtype: np.dtype) -> pa.DataType:
    return pa.from_numpy_dtype(dtype)


def large_list(rows: Sequence[Any], dtype: np.dtype) -> pa.LargeListArray:
    """Rows of numbers (None: null) as one flat value buffer with offsets."""
    packed = _from_lists(rows, dtype) if set(map(type, rows)) == {list} else None
    if packed is not None:
        lengths = list(map(len, rows))
        values = number_array(packed, _arrow_type(dtype), sum(lengths))
        return pa.LargeListArray.from_arrays(offsets(lengths), values)
    arrays = [np.empty(0, dtype) if row is None else _flat(row, dtype) for row in rows]
    null = pa.array([row is None for row in rows]) if any(row is None for row in rows) else None
    flat = np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)
    return pa.LargeListArray.from_arrays(
        offsets([len(a) for a in arrays]), number_array(flat, _arrow_type(dtype)), mask=null
    )


def _from_lists(rows: Sequence[list[Any]], dtype: np.dtype) -> bytes | None:
    """The numbers of all rows one after another, in a third of numpy's time. None where a row has
    something else than numbers of this kind: numpy decides on that."""
    if dtype == np.uint8:
        # most masks are all ones
        return b"".join([_ONE * len(r) if r.count(1) == len(r) else bytes(r) for r in rows])
    if (code := _ROW_CODES.get(dtype)) is None:
        return None
    try:
        return b"".join([struct.pack(f"{len(row)}{code}", *row) for row in rows])
    except (struct.error, TypeError, OverflowError):
        return None


def _flat(row: Any, dtype: np.dtype) -> np.ndarray:
    """The row as a one-dimensional array of this dtype. Raises ValueError rather than wrap integers
    around or cut fractions off."""
    if dtype == np.uint8 and isinstance(row, list):
        # four times as fast as numpy's own way from a list
        return np.frombuffer(bytes(row), np.uint8)
    array = np.asarray(row) if isinstance(row, np.ndarray) else np.array(row, dtype)
    if array.dtype != dtype:
        if (
            not np.can_cast(array.dtype, dtype, "same_kind")
            and array.size
            and not np.array_equal(array.astype(dtype), array)
        ):
            raise ValueError(f"{array.dtype} values do not fit {dtype}")
        array = array.astype(dtype)
    return array.reshape(-1)


def offsets(lengths: Sequence[int]) -> pa.Array:
    return number_array(array("q", accumulate(lengths, initial=0)), pa.int64())


def to_list(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    length = len(column)
    found: list[Any] = [None] * length if column.null_count == length else column.to_pylist()
    return found


def views(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """One zero-copy view of the values for every row of a column of lists (values of fixed-size
    lists are flattened); None where the row is null."""
    if column.null_count == len(column):
        return [None] * len(column)
    return [row for chunk in column.chunks for row in _views(chunk)]


def _views(column: pa.LargeListArray) -> list[np.ndarray | None]:
    length, nulls = len(column), column.null_count
    if nulls == length:
        return [None] * length
    values, width = column.values, 1
    if pa.types.is_fixed_size_list(values.type):
        width, values = values.type.list_size, values.values
    numbers = _numbers(values)
    bounds = (_numbers(column.offsets) * width).tolist()
    rows: list[np.ndarray | None] = [numbers[a:b] for a, b in pairwise(bounds)]
    if nulls == 0:
        return rows
    valid = column.is_valid().to_pylist()
    return [row if ok else None for row, ok in zip(rows, valid, strict=True)]


def _numbers(values: pa.Array) -> np.ndarray:
    """A read-only view of an array without nulls. (Arrow's own `to_numpy` imports pandas, which
    takes a second.)"""
    dtype, memory = np.dtype(values.type.to_pandas_dtype()), values.buffers()[1]
    if memory is None or not len(values):
        return np.frombuffer(bytes(dtype.itemsize), dtype)[:0]
    return np.frombuffer(memory, dtype, len(values), values.offset * dtype.itemsize)
