"""From RecordBatches (buffers/schema.py) back to their groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from buffers.arrays import to_list, views
from buffers.media import join_media
from buffers.schema import (
    ARRAY_FIELDS,
    EXPERT_DTYPES,
    JSON_FIELDS,
    NAMES,
    PLAIN_FIELDS,
    check_version,
)
from pipeline.core.free_form import decode_json
from pipeline.core.meta_info import PrefixCacheInfo, SpecInfo
from pipeline.core.types import Group, Sample, Status, VersionSpan

_COUNTS = {"spec_info": SpecInfo, "prefix_cache_info": PrefixCacheInfo}
_STATUSES = {str(status): status for status in Status}


def from_batch(batch: pa.RecordBatch) -> Group:
    """See `from_batches`."""
    return from_batches([batch])[0]


def from_batches(batches: Sequence[pa.RecordBatch]) -> list[Group]:
    """The group of every batch. `tokens` [T] int64, `loss_mask` [R] uint8 and `rollout_log_probs`
    [R] float32 of its samples are read-only numpy views of the batch's buffers (they keep them
    alive). Raises ReplayBufferError for another schema version.

    Together, because asking Arrow for a column costs more than the few values in a group's."""
    for batch in batches:
        check_version(batch.schema)
    table = pa.Table.from_batches(batches)
    stored: dict[str, pa.ChunkedArray] = dict(zip(NAMES, table.columns, strict=True))
    columns = _columns(stored)
    samples = [_sample(columns, row) for row in zip(*columns.values(), strict=True)]
    if stored["attributes"].null_count < len(samples):
        for sample, text in zip(samples, to_list(stored["attributes"]), strict=True):
            vars(sample).update({} if text is None else decode_json(text))
    group_index, deadline, version = (
        to_list(stored[name]) for name in ("group_index", "deadline", "admitted_version")
    )
    return [
        Group(
            group_index=group_index[start],
            deadline=deadline[start],
            admitted_version=version[start],
            samples=tuple(samples[start:end]),
        )
        for start, end in pairwise(accumulate([b.num_rows for b in batches], initial=0))
    ]


def _columns(stored: Mapping[str, pa.ChunkedArray]) -> dict[str, list[Any]]:
    """The fields of all samples."""
    columns = {name: to_list(stored[name]) for name in (*PLAIN_FIELDS, "reward", "reward_parts")}
    columns["group_index"] = to_list(stored["sample_group_index"])
    columns["status"] = [_STATUSES.get(s) or Status(s) for s in columns["status"]]
    for name in JSON_FIELDS:
        columns[name] = _from_jsons(to_list(stored[name]))
    for name in ARRAY_FIELDS:
        columns[name] = views(stored[name])
    spans = [
        [] if s is None else s.reshape(-1, 3).tolist() for s in views(stored["weight_versions"])
    ]
    columns["multimodal_train_inputs"] = join_media(
        columns["multimodal_train_inputs"], stored["multimodal_arrays"]
    )
    columns["weight_versions"] = [[VersionSpan(*s) for s in rows] for rows in spans]
    shapes = to_list(stored["routed_experts_shape"])
    experts = views(stored["routed_experts"])
    columns["rollout_routed_experts"] = [
        None if e is None else _shaped(e, s) for e, s in zip(experts, shapes, strict=True)
    ]
    parts = columns.pop("reward_parts")
    columns["reward"] = [
        r if p is None else decode_json(p) for r, p in zip(columns["reward"], parts, strict=True)
    ]
    for name, kind in _COUNTS.items():
        columns[name] = [kind(**found) if found else kind() for found in columns[name]]
    return columns


def _sample(names: Iterable[str], values: Iterable[Any]) -> Sample:
    """A third of the time of `Sample(...)`, which is given every field by name."""
    out = Sample.__new__(Sample)
    vars(out).update(zip(names, values, strict=True))
    return out


def _from_jsons(texts: list[str | None]) -> list[Any]:
    """What the texts say. Equal ones in a row, such as the prompt of a group, are read once, where
    what they say is a text: nobody can write into that."""
    out: list[Any] = []
    for place, text in enumerate(texts):
        if text is None:
            out.append(None)
        elif text == "{}":  # most samples' metadata
            out.append({})
        elif place and text == texts[place - 1] and isinstance(out[-1], str):
            out.append(out[-1])
        else:
            out.append(decode_json(text))
    return out


def _shaped(data: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    count = int(np.prod(shape))
    return data.view(EXPERT_DTYPES[data.size // count if count else 1]).reshape(shape)
