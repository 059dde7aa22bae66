"""Random records, as far apart as the types allow."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pipeline.core.meta_info import PrefixCacheInfo, SpecInfo
from pipeline.core.types import Group, Sample, Status, VersionSpan

INTS = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | INTS | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=3)


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


@st.composite
def experts(draw: st.DrawFn) -> np.ndarray:
    """[tokens, layers, top_k], any of them possibly empty."""
    shape = draw(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 2)))
    return np.arange(np.prod(shape), dtype=np.int32).reshape(shape) - 1


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    length = draw(st.integers(0, 8))
    sample = Sample(
        group_index=draw(optional(INTS)),
        index=draw(optional(INTS)),
        prompt=draw(TEXT | MESSAGES),
        tokens=draw(st.lists(INTS, max_size=12)),
        response=draw(TEXT),
        response_length=length,
        label=draw(JSON),
        reward=draw(
            optional(
                st.floats(allow_nan=False)
                | st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3)
            )
        ),
        loss_mask=draw(optional(st.lists(st.integers(0, 1), min_size=length, max_size=length))),
        status=draw(st.sampled_from(Status)),
        metadata=draw(OBJECTS),
        multimodal_inputs=draw(optional(OBJECTS)),
        multimodal_train_inputs=draw(optional(OBJECTS)),
        weight_versions=draw(st.lists(st.builds(VersionSpan, INTS, INTS, INTS), max_size=3)),
        rollout_log_probs=draw(
            optional(
                st.lists(st.floats(width=32, allow_nan=False), min_size=length, max_size=length)
            )
        ),
        rollout_routed_experts=draw(optional(experts())),
        remove_sample=draw(st.booleans()),
        generate_function_path=draw(optional(TEXT)),
        custom_rm_path=draw(optional(TEXT)),
        train_metadata=draw(optional(OBJECTS)),
        session_id=draw(optional(TEXT)),
        non_generation_time=draw(st.floats(allow_nan=False)),
        rollout_id=draw(optional(INTS)),
        spec_info=draw(st.builds(SpecInfo, st.integers(0, 9), st.integers(0, 9))),
        prefix_cache_info=draw(st.builds(PrefixCacheInfo, st.integers(0, 9), st.integers(0, 9))),
        error=draw(optional(TEXT)),
    )
    vars(sample).update(draw(st.dictionaries(st.sampled_from(["calls", "notes"]), JSON)))
    return sample


@st.composite
def groups(draw: st.DrawFn) -> Group:
    return Group(
        group_index=draw(INTS),
        deadline=draw(INTS),
        admitted_version=draw(INTS),
        samples=tuple(draw(st.lists(samples(), min_size=1, max_size=5))),
    )
