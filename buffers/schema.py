"""One Arrow schema for groups: a RecordBatch is a group, a row is a sample. Never pickle.

What a learner reads in bulk (tokens, loss mask, log-probs) lies in LargeList columns in the
learner's own dtypes; free-form fields are JSON strings; the rest are plain columns. An array of
numbers in multimodal_train_inputs is stored as its dtype, shape and bytes, an image in
multimodal_inputs as a data-URL. encoding.py writes such batches and decoding.py reads them. What
comes back equals what was stored, except that log-probs are float32 (as engines send them), that
routed experts are numpy arrays of the smallest type that holds the group's (`narrow_experts`), and
that JSON knows neither tuples nor keys other than strings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from buffers.media import MEDIA
from pipeline.core.errors import ReplayBufferError

SCHEMA_VERSION = 4
_SPAN = pa.list_(pa.int64(), 3)  # version, start, end
JSON_FIELDS = (
    "prompt",
    "label",
    "metadata",
    "multimodal_inputs",
    "multimodal_train_inputs",
    "train_metadata",
    "spec_info",
    "prefix_cache_info",
)
PLAIN_FIELDS = {
    "index": pa.int64(),
    "rollout_id": pa.int64(),
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
ARRAY_FIELDS: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype(np.int64),
    "loss_mask": np.dtype(np.uint8),
    "rollout_log_probs": np.dtype(np.float32),
    "teacher_log_probs": np.dtype(np.float32),
    "rollout_top_p_token_ids": np.dtype(np.int32),
    "rollout_top_p_token_offsets": np.dtype(np.int32),
}

# bytes of an expert's number -> its dtype
EXPERT_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
}

SCHEMA = pa.schema(
    [
        # these three are the group's: the same in every row
        pa.field("group_index", pa.int64(), nullable=False),
        pa.field("deadline", pa.int64(), nullable=False),
        pa.field("admitted_version", pa.int64(), nullable=False),
        pa.field("sample_group_index", pa.int64()),  # what the sample itself says
        *(pa.field(name, dtype) for name, dtype in PLAIN_FIELDS.items()),
        *(pa.field(name, pa.large_string()) for name in JSON_FIELDS),
        # those that user functions have set beside the fields and that JSON can say
        pa.field("attributes", pa.large_string()),
        pa.field("reward", pa.float64()),  # a scalar reward ...
        pa.field("reward_parts", pa.large_string()),  # ... or a dict, a list, a text, as JSON
        *(
            pa.field(name, pa.large_list(pa.from_numpy_dtype(dtype)))
            for name, dtype in ARRAY_FIELDS.items()
        ),
        pa.field("weight_versions", pa.large_list(_SPAN)),
        # bytes: the shape says how many make a number (EXPERT_DTYPES)
        pa.field("routed_experts", pa.large_list(pa.uint8())),
        pa.field("routed_experts_shape", pa.list_(pa.int64())),
        # the arrays of multimodal_train_inputs; what else it has is JSON, above
        pa.field("multimodal_arrays", MEDIA),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

COLUMNS = tuple(zip(SCHEMA.names, SCHEMA.types, strict=True))  # asking a schema for them costs 9 us
NAMES = tuple(SCHEMA.names)


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
