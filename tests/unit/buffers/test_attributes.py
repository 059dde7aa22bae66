"""What user functions set on samples beside the fields, in the buffer."""

from __future__ import annotations

import logging

from buffers.decoding import from_batch
from buffers.encoding import to_batch
from pipeline.core import free_form
from pipeline.core.types import Group, Sample


def stored(*samples: Sample) -> tuple[Sample, ...]:
    group = Group(group_index=0, deadline=1, admitted_version=0, samples=samples)
    return from_batch(to_batch(group)).samples


def test_they_come_back_and_what_cannot_is_named(caplog) -> None:
    free_form._told.clear()
    plain, marked = Sample(tokens=[1, 2], response_length=1), Sample(tokens=[1], rollout_id=5)
    marked.payload_text, marked.calls, marked.client = "a", [1, {"b": None}], object()
    marked.spec_info.add({"completion_tokens": 3})
    with caplog.at_level(logging.WARNING):
        first, second = stored(plain, marked)
    assert first.attributes() == {} and first.rollout_id is None
    assert second.attributes() == {"payload_text": "a", "calls": [1, {"b": None}]}
    assert second.rollout_id == 5 and second.spec_info.completion_token_num == 3
    assert first.spec_info == Sample.SpecInfo()
    assert [r.args[0] for r in caplog.records] == ["client"]


def test_top_p_words_come_back() -> None:
    ids, offsets = [3, 4, 5], [0, 2, 3]
    (again,) = stored(Sample(rollout_top_p_token_ids=ids, rollout_top_p_token_offsets=offsets))
    assert again.rollout_top_p_token_ids.tolist() == ids
    assert again.rollout_top_p_token_offsets.tolist() == offsets
