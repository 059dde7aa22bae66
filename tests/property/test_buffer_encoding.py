"""Any group comes back from Arrow as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buffers.decoding import from_batch
from buffers.encoding import to_batch
from buffers.segments import SegmentStore, decode, encode
from pipeline.core.types import Group
from tests.property.strategies import groups


def plain(group: Group) -> dict:
    return {
        "group_index": group.group_index,
        "deadline": group.deadline,
        "admitted_version": group.admitted_version,
        "samples": [s.to_dict() for s in group.samples],
    }


@given(groups())
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
def test_round_trip(group: Group) -> None:
    back = from_batch(decode(pa.py_buffer(encode(to_batch(group))), Path("x"), 0))
    assert plain(back) == plain(group)
    for sample, original in zip(back.samples, group.samples, strict=True):
        assert sample.tokens.dtype == np.int64 and not sample.tokens.flags.writeable
        assert (sample.loss_mask is None) == (original.loss_mask is None)
        if original.loss_mask is not None:
            assert sample.loss_mask.dtype == np.uint8
            assert sample.effective_response_length == original.effective_response_length
        if original.rollout_log_probs is not None:
            assert sample.rollout_log_probs.dtype == np.float32
        if original.rollout_routed_experts is not None:
            assert sample.rollout_routed_experts.shape == original.rollout_routed_experts.shape
        assert sample.weight_versions == original.weight_versions and type(sample.status) is type(
            original.status
        )
    assert plain(from_batch(to_batch(back))) == plain(group), "what was read can be written again"


@given(st.lists(groups(), min_size=1, max_size=5), st.integers(1, 30_000), st.randoms())
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_any_order_of_reads_and_frees(
    tmp_path_factory, stored: list[Group], segment_bytes: int, random
) -> None:
    """Whatever the segment size: each batch is read as it was written until it is freed, and no
    file stays behind."""
    directory = tmp_path_factory.mktemp("buffer")
    store = SegmentStore(directory, segment_bytes)
    locations = [store.append(encode(to_batch(group))) for group in stored]
    order = list(range(len(stored)))
    random.shuffle(order)
    for i in order:
        for j in order[order.index(i) :]:
            assert plain(from_batch(store.read(locations[j]))) == plain(stored[j])
        store.free(locations[i])
    store.close()
    assert list(directory.iterdir()) == []
