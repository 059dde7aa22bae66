"""From a group to its RecordBatch (buffers/schema.py)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from buffers.arrays import is_one, large_list, make_array, number_array, offsets, repeated
from buffers.media import media_column, rest_of_media
from buffers.schema import ARRAY_FIELDS, COLUMNS, JSON_FIELDS, SCHEMA
from pipeline.core.errors import ReplayBufferError, UnstorableSamplesError
from pipeline.core.free_form import NOT_JSON, encode_json, keepable
from pipeline.core.meta_info import PrefixCacheInfo, SpecInfo
from pipeline.core.types import Group, Sample, VersionSpan, narrow_experts

# column -> field, of those that are often None in a whole group
_OPTIONAL = {
    "multimodal_inputs": "multimodal_inputs",
    "multimodal_train_inputs": "multimodal_train_inputs",
    "multimodal_arrays": "multimodal_train_inputs",
    "train_metadata": "train_metadata",
    "rollout_id": "rollout_id",
    "rollout_top_p_token_ids": "rollout_top_p_token_ids",
    "rollout_top_p_token_offsets": "rollout_top_p_token_offsets",
    "generate_function_path": "generate_function_path",
    "custom_rm_path": "custom_rm_path",
    "session_id": "session_id",
    "error": "error",
    "teacher_log_probs": "teacher_log_probs",
    "routed_experts": "rollout_routed_experts",
    "routed_experts_shape": "rollout_routed_experts",
}
_UNSTORABLE = (*NOT_JSON, OverflowError, pa.ArrowException)
_NO_COUNTS = {"spec_info": SpecInfo(), "prefix_cache_info": PrefixCacheInfo()}


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
    for name, dtype in COLUMNS:
        try:
            columns.append(_named_column(name, dtype, group, samples))
        except _UNSTORABLE as error:
            raise UnstorableSamplesError(
                group.group_index, _reasons(name, dtype, group) or {0: _reason(name, error)}
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


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
        return repeated(None, dtype, len(samples))
    return _column(name, dtype, group, samples)


def _is_unused(name: str, samples: Sequence[Sample]) -> bool:
    """Is the field None in every sample? A dozen fields are, in most groups."""
    field = _OPTIONAL.get(name)
    return field is not None and all(getattr(s, field) is None for s in samples)


def _column(name: str, dtype: pa.DataType, group: Group, samples: Sequence[Sample]) -> pa.Array:
    if name in ("group_index", "deadline", "admitted_version"):
        return make_array([getattr(group, name)] * len(samples), dtype)
    if name in ARRAY_FIELDS:
        return large_list([getattr(s, name) for s in samples], ARRAY_FIELDS[name])
    if name == "multimodal_train_inputs":
        return make_array(
            [_to_json(rest_of_media(s.multimodal_train_inputs)) for s in samples], dtype
        )
    if name == "multimodal_arrays":
        return media_column([s.multimodal_train_inputs for s in samples])
    if name in _NO_COUNTS:
        return make_array([_counts(getattr(s, name), _NO_COUNTS[name]) for s in samples], dtype)
    if name in JSON_FIELDS:
        return make_array(_jsons([getattr(s, name) for s in samples]), dtype)
    match name:
        case "attributes":
            found = [s.attributes() for s in samples]
            return make_array([_to_json(keepable(a) or None) if a else None for a in found], dtype)
        case "sample_group_index":
            return make_array([s.group_index for s in samples], dtype)
        case "status":
            return make_array([str(s.status) for s in samples], dtype)
        case "reward":
            rewards = [s.reward for s in samples]
            return make_array(
                [None if r is None or _is_written_out(r) else float(r) for r in rewards], dtype
            )
        case "reward_parts":
            rewards = [s.reward for s in samples]
            return make_array([_to_json(r) if _is_written_out(r) else None for r in rewards], dtype)
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
    return make_array([getattr(s, name) for s in samples], dtype)


def _spans(rows: Sequence[Sequence[VersionSpan]]) -> pa.LargeListArray:
    flat = array("q", [number for row in rows for span in row for number in span])
    values = pa.FixedSizeListArray.from_arrays(number_array(flat, pa.int64()), 3)
    return pa.LargeListArray.from_arrays(offsets([len(row) for row in rows]), values)


def _experts(samples: Sequence[Sample]) -> pa.LargeListArray:
    """The bytes of every sample's experts. All are of one type within a group, so that each
    sample's numbers are aligned."""
    rows = [None if (e := s.rollout_routed_experts) is None else _integers(e) for s in samples]
    dtype = max((r.dtype for r in rows if r is not None), key=lambda d: d.itemsize)
    return large_list(
        [
            None if r is None else r.astype(dtype, copy=False).reshape(-1).view(np.uint8)
            for r in rows
        ],
        np.dtype(np.uint8),
    )


def _integers(experts: Any) -> np.ndarray:
    array = np.asarray(experts)
    if array.dtype == np.uint8:  # no type is narrower: engines' answers come so
        return np.ascontiguousarray(array)
    whole = array
    if array.dtype.kind not in "iu":
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise ValueError(f"{array.dtype} values are not whole numbers")
    return np.ascontiguousarray(narrow_experts(whole))


def _is_written_out(reward: Any) -> bool:
    # asking an abstract class costs more than all else that is done for a reward
    return type(reward) is not float and isinstance(reward, str | Sequence | Mapping)


def _to_json(value: Any) -> str | None:
    return None if value is None else encode_json(value)


def _counts(info: Any, none: Any) -> str | None:
    return None if info == none else encode_json(info.to_dict())


def _jsons(values: list[Any]) -> list[str | None]:
    """The JSON texts of `values`. What all samples of a group share (the prompt, the label) is
    encoded once."""
    if is_one(values):
        return [_to_json(values[0])] * len(values)
    return ["{}" if type(v) is dict and not v else _to_json(v) for v in values]


def _expected(name: str) -> str:
    if name in JSON_FIELDS or name == "reward_parts":
        return "what JSON can say"
    if name in ARRAY_FIELDS or name == "routed_experts":
        return f"numbers of dtype {ARRAY_FIELDS.get(name, 'int32 at most')}"
    return f"a value of Arrow type {SCHEMA.field(name).type}"
