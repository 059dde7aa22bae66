"""One Arrow schema for groups: a RecordBatch is a group, a row is a sample. Never pickle.

What a learner reads in bulk (tokens, loss mask, log-probs) lies in LargeList columns in the
learner's own dtypes and comes back as read-only numpy views of the batch's memory; free-form fields
are JSON strings; the rest are plain columns. Arrays of numbers in multimodal_train_inputs are their
dtype, shape and bytes; images in multimodal_inputs are data-URLs. Exact both ways, except:
log-probs are float32 (as engines send them), routed experts numpy arrays of the smallest type that
holds the group's (`narrow_experts`), and JSON knows neither tuples nor keys that are no strings.
"""

from __future__ import annotations

import functools
import json
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from buffers.media import MEDIA, join_media, media_column, rest_of_media
from pipeline.core.errors import ReplayBufferError, UnstorableSamplesError
from pipeline.core.images import is_pil_image, to_data_url
from pipeline.core.types import Group, Sample, Status, VersionSpan, narrow_experts

SCHEMA_VERSION = 3
_SHORT = 64  # characters
_CODES = {(int, pa.int64().id): "q", (float, pa.float64().id): "d"}  # of array.array
_NUMBER_IDS = (pa.int64().id, pa.float64().id)
_SPAN = pa.list_(pa.int64(), 3)  # version, start, end
_JSON = (
    "prompt",
    "label",
    "metadata",
    "multimodal_inputs",
    "multimodal_train_inputs",
    "train_metadata",
    "spec_info",
)
_PLAIN = {
    "index": pa.int64(),
    "response": pa.large_string(),
    "response_length": pa.int64(),
    "status": pa.string(),
    "remove_sample": pa.bool_(),
    "generate_function_path": pa.string(),
    "custom_rm_path": pa.string(),
    "session_id": pa.string(),
    "non_generation_time": pa.float64(),
    "error": pa.string(),
}
_OPTIONAL = {  # column -> field, of those that are often None in a whole group
    **{
        n: n
        for n in ("multimodal_inputs", "multimodal_train_inputs", "train_metadata", "spec_info")
    },
    **{
        n: n
        for n in (
            "generate_function_path",
            "custom_rm_path",
            "session_id",
            "error",
            "teacher_log_probs",
        )
    },
    "multimodal_arrays": "multimodal_train_inputs",
    "routed_experts": "rollout_routed_experts",
    "routed_experts_shape": "rollout_routed_experts",
}
_ARRAYS: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype(np.int64),
    "loss_mask": np.dtype(np.uint8),
    "rollout_log_probs": np.dtype(np.float32),
    "teacher_log_probs": np.dtype(np.float32),
}

_ARROW = {dtype: pa.from_numpy_dtype(dtype) for dtype in _ARRAYS.values()}
# by bytes an expert
_EXPERT_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
}

SCHEMA = pa.schema(
    [
        # these three: of the group, the same in every row
        pa.field("group_index", pa.int64(), nullable=False),
        pa.field("deadline", pa.int64(), nullable=False),
        pa.field("admitted_version", pa.int64(), nullable=False),
        pa.field("sample_group_index", pa.int64()),  # what the sample itself says
        *(pa.field(name, dtype) for name, dtype in _PLAIN.items()),
        *(pa.field(name, pa.large_string()) for name in _JSON),
        pa.field("reward", pa.float64()),  # a scalar reward ...
        pa.field("reward_parts", pa.large_string()),  # ... or a dict of them, as JSON
        *(
            pa.field(name, pa.large_list(pa.from_numpy_dtype(dtype)))
            for name, dtype in _ARRAYS.items()
        ),
        pa.field("weight_versions", pa.large_list(_SPAN)),
        # bytes: the shape says how many make a number (_EXPERT_DTYPES)
        pa.field("routed_experts", pa.large_list(pa.uint8())),
        pa.field("routed_experts_shape", pa.list_(pa.int64())),
        # the arrays of multimodal_train_inputs; what else it has is JSON, above
        pa.field("multimodal_arrays", MEDIA),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

_FIELDS = tuple(zip(SCHEMA.names, SCHEMA.types, strict=True))  # asking a schema for them costs 9 us
_NAMES = tuple(SCHEMA.names)


def to_batch(group: Group) -> pa.RecordBatch:
    """The group as one RecordBatch, a row a sample.

    Raises UnstorableSamplesError naming each sample with a field that Arrow or JSON cannot hold.
    """
    samples = group.samples
    if not samples:
        raise ReplayBufferError(
            f"group {group.group_index} has no samples: discard it instead of putting it"
        )
    columns: list[pa.Array] = []
    for name, dtype in _FIELDS:
        try:
            columns.append(_named_column(name, dtype, group, samples))
        except _UNSTORABLE as error:
            raise UnstorableSamplesError(
                group.group_index, _reasons(name, dtype, group) or {0: _reason(name, error)}
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


_UNSTORABLE = (TypeError, ValueError, OverflowError, RecursionError, pa.ArrowException)


def _reasons(name: str, dtype: pa.DataType, group: Group) -> dict[int, str]:
    """Which samples' fields of this name cannot be stored, and why not."""
    reasons = {}
    for place, sample in enumerate(group.samples):
        try:
            _named_column(name, dtype, group, (sample,))
        except _UNSTORABLE as error:
            reasons[place] = _reason(name, error)
    return reasons


def _reason(name: str, error: Exception) -> str:
    return (
        f"sample.{name} cannot be stored ({error}); expected {_expected(name)}. Fix the custom"
        " function that sets it."
    )


def _named_column(
    name: str, dtype: pa.DataType, group: Group, samples: Sequence[Sample]
) -> pa.Array:
    if _is_unused(name, samples):
        return _repeated(None, dtype, len(samples))
    return _column(name, dtype, group, samples)


def from_batch(batch: pa.RecordBatch) -> Group:
    """The group of a RecordBatch. `tokens` [T] int64, `loss_mask` [R] uint8 and `rollout_log_probs`
    [R] float32 of its samples are read-only numpy views of the batch's buffers (they keep them
    alive). Raises ReplayBufferError for another schema version."""
    check_version(batch.schema)
    stored: dict[str, pa.Array] = dict(zip(_NAMES, batch.columns, strict=True))
    columns: dict[str, list[Any]] = {
        name: _pylist(stored[name]) for name in (*_PLAIN, "reward", "reward_parts")
    }
    columns["group_index"] = _pylist(stored["sample_group_index"])
    columns["status"] = [Status(s) for s in columns["status"]]
    for name in _JSON:
        columns[name] = [
            None if text is None else _decode_json(text) for text in _pylist(stored[name])
        ]
    for name in _ARRAYS:
        columns[name] = _views(stored[name])
    spans = [
        [] if s is None else s.reshape(-1, 3).tolist() for s in _views(stored["weight_versions"])
    ]
    columns["multimodal_train_inputs"] = join_media(
        columns["multimodal_train_inputs"], stored["multimodal_arrays"]
    )
    columns["weight_versions"] = [[VersionSpan(*s) for s in rows] for rows in spans]
    shapes = _pylist(stored["routed_experts_shape"])
    experts = _views(stored["routed_experts"])
    columns["rollout_routed_experts"] = [
        None if e is None else _shaped(e, s) for e, s in zip(experts, shapes, strict=True)
    ]
    parts = columns.pop("reward_parts")
    columns["reward"] = [
        r if p is None else _decode_json(p) for r, p in zip(columns["reward"], parts, strict=True)
    ]
    samples = tuple(
        Sample(**dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    )
    first = {
        name: stored[name][0].as_py() for name in ("group_index", "deadline", "admitted_version")
    }
    return Group(**first, samples=samples)


def check_version(schema: pa.Schema) -> None:
    """Raises ReplayBufferError unless this code wrote the schema."""
    if schema.equals(SCHEMA, check_metadata=True):
        return
    found = (schema.metadata or {}).get(b"schema_version", b"none").decode()
    if found != str(SCHEMA_VERSION) or schema.names != SCHEMA.names:
        raise ReplayBufferError(
            f"buffer schema_version {found}: this version reads {SCHEMA_VERSION}; finish the run"
            " with the one that wrote it"
        )


def _is_unused(name: str, samples: Sequence[Sample]) -> bool:
    """None in every sample, as a dozen fields are in most groups."""
    return name in _OPTIONAL and all(getattr(s, _OPTIONAL[name]) is None for s in samples)


@functools.lru_cache(maxsize=1024, typed=True)
def _repeated(value: Any, dtype: pa.DataType, length: int) -> pa.Array:
    """Arrays are immutable: all groups may share one."""
    return pa.array([value] * length, dtype)


def _array(values: list[Any], dtype: pa.DataType) -> pa.Array:
    """pa.array, by a shorter way for numbers without nulls and for one short text, truth value or
    null in all rows: most groups consist of such, and pa.array costs more than everything else of a
    small group."""
    first = values[0]
    kind = type(first)
    if (kind is bool or first is None or (kind is str and len(first) <= _SHORT)) and all(
        v is first for v in values
    ):
        return _repeated(first, dtype, len(values))
    code = _CODES.get((kind, dtype.id))
    if code is not None and all(type(v) is kind for v in values):
        return _numbers(array(code, values), dtype)
    return pa.array(values, dtype)


def _numbers(values: Any, dtype: pa.DataType) -> pa.Array:
    """An array over memory that holds its values already. [n] of anything with the buffer protocol,
    one-dimensional and contiguous."""
    return pa.Array.from_buffers(dtype, len(values), [None, pa.py_buffer(values)])


def _column(name: str, dtype: pa.DataType, group: Group, samples: Sequence[Sample]) -> pa.Array:
    if name in ("group_index", "deadline", "admitted_version"):
        return _array([getattr(group, name)] * len(samples), dtype)
    if name in _ARRAYS:
        return _large_list([getattr(s, name) for s in samples], _ARRAYS[name])
    if name == "multimodal_train_inputs":
        return _array([_to_json(rest_of_media(s.multimodal_train_inputs)) for s in samples], dtype)
    if name == "multimodal_arrays":
        return media_column([s.multimodal_train_inputs for s in samples])
    if name in _JSON:
        return _array(_jsons([getattr(s, name) for s in samples]), dtype)
    match name:
        case "sample_group_index":
            return _array([s.group_index for s in samples], dtype)
        case "status":
            return _array([str(s.status) for s in samples], dtype)
        case "reward":
            return _array(
                [
                    None if s.reward is None or isinstance(s.reward, dict) else float(s.reward)
                    for s in samples
                ],
                dtype,
            )
        case "reward_parts":
            return _array(
                [_to_json(s.reward) if isinstance(s.reward, dict) else None for s in samples], dtype
            )
        case "weight_versions":
            return _spans([s.weight_versions for s in samples])
        case "routed_experts":
            return _experts(samples)
        case "routed_experts_shape":
            return pa.array(
                [
                    None if (e := s.rollout_routed_experts) is None else list(np.shape(e))
                    for s in samples
                ],
                dtype,
            )
    return _array([getattr(s, name) for s in samples], dtype)


def _large_list(rows: Sequence[Any], dtype: np.dtype) -> pa.LargeListArray:
    """Rows of numbers (None: null) as one flat value buffer with offsets."""
    arrays = [np.empty(0, dtype) if row is None else _flat(row, dtype) for row in rows]
    null = pa.array([row is None for row in rows]) if any(row is None for row in rows) else None
    flat = np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)
    return pa.LargeListArray.from_arrays(
        _offsets([len(a) for a in arrays]), _numbers(flat, _ARROW[dtype]), mask=null
    )


def _flat(row: Any, dtype: np.dtype) -> np.ndarray:
    """One-dimensional, of this dtype; raises ValueError rather than wrap integers around, or cut
    fractions off."""
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


def _spans(rows: Sequence[Sequence[VersionSpan]]) -> pa.LargeListArray:
    flat = array("q", [number for row in rows for span in row for number in span])
    values = pa.FixedSizeListArray.from_arrays(_numbers(flat, pa.int64()), 3)
    return pa.LargeListArray.from_arrays(_offsets([len(row) for row in rows]), values)


def _offsets(lengths: Sequence[int]) -> pa.Array:
    return _numbers(array("q", accumulate(lengths, initial=0)), pa.int64())


def _pylist(column: pa.Array) -> list[Any]:
    nulls, length = column.null_count, len(column)
    if nulls == length:
        return [None] * length
    if nulls == 0 and column.type.id in _NUMBER_IDS:
        numbers: list[Any] = column.to_numpy().tolist()
        return numbers
    return column.to_pylist()


def _views(column: pa.LargeListArray) -> list[np.ndarray | None]:
    """Row by row a zero-copy view of the column's values (fixed-size-list values flattened); None
    where null."""
    if column.null_count == len(column):
        return [None] * len(column)
    values, width = column.values, 1
    if pa.types.is_fixed_size_list(values.type):
        width, values = values.type.list_size, values.values
    numbers = values.to_numpy(zero_copy_only=True)
    bounds = (column.offsets.to_numpy() * width).tolist()
    valid = [True] * len(column) if column.null_count == 0 else column.is_valid().to_pylist()
    return [
        numbers[a:b] if ok else None
        for a, b, ok in zip(bounds[:-1], bounds[1:], valid, strict=True)
    ]


def _experts(samples: Sequence[Sample]) -> pa.LargeListArray:
    """The bytes of every sample's experts.

    Of one type in a group, so that each begins where its numbers may begin.
    """
    rows = [None if (e := s.rollout_routed_experts) is None else _integers(e) for s in samples]
    dtype = max((r.dtype for r in rows if r is not None), key=lambda d: d.itemsize)
    return _large_list(
        [
            None if r is None else r.astype(dtype, copy=False).reshape(-1).view(np.uint8)
            for r in rows
        ],
        _ARRAYS["loss_mask"],
    )


def _integers(experts: Any) -> np.ndarray:
    array = np.asarray(experts)
    whole = array if array.dtype.kind in "iu" else array.astype(np.int64)
    if not np.array_equal(whole, array):
        raise ValueError(f"{array.dtype} values are not whole numbers")
    return np.ascontiguousarray(narrow_experts(whole))


def _shaped(data: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    count = int(np.prod(shape))
    return data.view(_EXPERT_DTYPES[data.size // count if count else 1]).reshape(shape)


def _to_json(value: Any) -> str | None:
    return None if value is None else _encode_json(value)


def _jsons(values: list[Any]) -> list[str | None]:
    """What a group shares (its prompt, its label) is said once."""
    first = values[0]
    if all(v is first for v in values):
        return [_to_json(first)] * len(values)
    return [_to_json(v) for v in values]


def _plain(value: Any) -> Any:
    """What json cannot say but numpy can."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if is_pil_image(value):
        return to_data_url(value)
    raise TypeError(f"{type(value).__name__} {value!r:.80} is not JSON")


_encode_json = json.JSONEncoder(default=_plain).encode
_decode_json = json.JSONDecoder().decode


def _expected(name: str) -> str:
    if name in _JSON or name == "reward_parts":
        return "what JSON can say"
    if name in _ARRAYS or name == "routed_experts":
        return f"numbers of dtype {_ARRAYS.get(name, 'int32 at most')}"
    return f"a value of Arrow type {SCHEMA.field(name).type}"
