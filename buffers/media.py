"""The arrays of `multimodal_train_inputs` as an Arrow column, each with its name, dtype, shape and
bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_ENTRY = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),  # numpy's, e.g. <f4
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),  # row by row
    ]
)
MEDIA = pa.large_list(_ENTRY)

Inputs = Mapping[str, Any] | None


def media_column(rows: Sequence[Inputs]) -> pa.Array:
    """The arrays of every sample's inputs. Raises ValueError for an array that does not hold
    numbers."""
    return pa.array(
        [None if row is None else [_entry(k, a) for k, a in _arrays(row).items()] for row in rows],
        MEDIA,
    )


def rest_of_media(row: Inputs) -> dict[str, Any] | None:
    """What of the inputs is not an array."""
    return None if row is None else {k: v for k, v in row.items() if k not in _arrays(row)}


def join_media(
    rests: Sequence[dict[str, Any] | None], column: pa.ChunkedArray
) -> list[dict[str, Any] | None]:
    """Puts together again what `media_column` and `rest_of_media` took apart.

    The arrays are read-only and share the column's memory where it is aligned for them."""
    if column.null_count == len(column):
        return list(rests)
    return [
        rest if rest is None else {**rest, **_read(row)}
        for rest, row in zip(rests, column, strict=True)
    ]


def _arrays(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays among the inputs; torch's tensors are returned as numpy arrays."""
    found = {k: v.detach().cpu().numpy() if hasattr(v, "detach") else v for k, v in row.items()}
    return {k: v for k, v in found.items() if isinstance(v, np.ndarray)}


def _entry(name: str, array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is an array of {array.dtype}, not of numbers")
    return {"name": name, "dtype": array.dtype.str, "shape": array.shape, "data": array.tobytes()}


def _read(row: pa.LargeListScalar) -> dict[str, np.ndarray]:
    out = {}
    for entry in row.values or ():
        flat = np.frombuffer(entry["data"].as_buffer(), np.dtype(entry["dtype"].as_py()))
        out[entry["name"].as_py()] = np.require(flat, requirements="A").reshape(
            entry["shape"].as_py()
        )
    return out
