"""The sample as slime's functions use it: attributes of their own, and its two ways to append."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.core import free_form
from pipeline.core.types import Sample, Status, VersionSpan

ARGS = SimpleNamespace(num_layers=2, moe_router_topk=1)
STOPPED = {"finish_reason": {"type": "stop"}, "weight_version": "4"}


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))]
)
def test_attributes_go_along(copied) -> None:
    sample = Sample(index=3)
    sample.tool_call_count = 1
    again = copied(sample)
    assert again.tool_call_count == 1 and again.index == 3
    assert again.attributes() == {"tool_call_count": 1}


def test_a_snapshot_keeps_what_json_can_say_and_names_the_rest_once(caplog) -> None:
    free_form._told.clear()
    sample = Sample(index=1, rollout_id=7)
    sample.notes, sample.scores, sample.client = {"a": [1]}, np.arange(2), object()
    sample.spec_info.add({"spec_draft_token_num": 4})
    with caplog.at_level(logging.WARNING):
        said = json.loads(json.dumps([sample.to_dict(), sample.to_dict()]))[0]
    again = Sample.from_dict(said)
    assert again.attributes() == {"notes": {"a": [1]}, "scores": [0, 1]}
    assert (again.rollout_id, again.spec_info, again.index) == (7, sample.spec_info, 1)
    assert [r.getMessage() for r in caplog.records] == [
        "sample.client is gone once its sample is stored, for JSON cannot say it"
        f" (object {sample.client!r} is not JSON)"
    ]


def test_slimes_fields_have_slimes_defaults() -> None:
    sample = Sample()
    assert sample.rollout_id is None and sample.rollout_top_p_token_ids is None
    assert sample.status is Sample.Status.PENDING and sample.attributes() == {}
    assert sample.spec_info == Sample.SpecInfo() and sample.spec_info.spec_accept_rate == 0
    sample.spec_info.add({})
    sample.prefix_cache_info.add({"cached_tokens": 3, "prompt_tokens": 4})
    assert sample.prefix_cache_info.prefix_cache_hit_rate == 0.75
    assert Sample().prefix_cache_info == Sample.PrefixCacheInfo()  # none is shared


def test_slimes_call() -> None:
    sample = Sample(tokens=[1])
    sample.append_response_tokens(
        ARGS, tokens=[2, 3], log_probs=[-1.0, -2.0], trainable=True, meta_info=STOPPED, text="ab"
    )
    sample.append_response_tokens(ARGS, tokens=[9], trainable=False)
    assert (sample.tokens, sample.response_length) == ([1, 2, 3, 9], 3)
    assert sample.loss_mask == [1, 1, 0] and sample.rollout_log_probs == [-1.0, -2.0, 0.0]
    assert sample.status is Status.COMPLETED and sample.response == "ab"
    assert sample.weight_versions == [VersionSpan(4, 0, 2)]


def test_our_call() -> None:
    sample = Sample(tokens=[1])
    sample.append_response_tokens([2], log_probs=[-1.0], spans=[VersionSpan(4, 0, 1)])
    sample.append_response_tokens(np.array([9]), trainable=False)
    assert sample.tokens == [1, 2, 9] and all(type(t) is int for t in sample.tokens)
    assert sample.loss_mask == [1, 0] and sample.weight_versions == [VersionSpan(4, 0, 1)]
    assert sample.status is Status.PENDING


def test_a_list_at_hand_grows_with_the_sample() -> None:
    sample = Sample(tokens=[1], loss_mask=[])
    mask = sample.loss_mask
    sample.append_response_tokens(ARGS, tokens=[2], log_probs=[-1.0])
    assert mask is sample.loss_mask == [1]


def test_what_comes_out_of_the_buffer_can_be_appended_to() -> None:
    stored = np.array([1, 2])
    stored.flags.writeable = False
    sample = Sample(tokens=stored, response_length=1, loss_mask=np.ones(1, np.uint8))
    sample.append_response_tokens(ARGS, tokens=[3], trainable=False)
    assert sample.tokens == [1, 2, 3] and sample.loss_mask == [1, 0]


@pytest.mark.parametrize(
    ("said", "spans"),
    [
        ({"weight_version": 4}, [VersionSpan(4, 0, 3)]),
        ({"weight_version": "default"}, []),  # SGLang's own, where nobody counts versions
        (
            {
                "weight_version": "5",
                "weight_versions": [
                    {"version": "4", "start": 0, "end": 2},
                    {"version": "5", "start": 2, "end": 9},  # the function has cut the answer off
                    {"version": "6", "start": 9, "end": 11},
                ],
            },
            [VersionSpan(4, 0, 2), VersionSpan(5, 2, 3)],
        ),
    ],
)
def test_versions_are_of_the_answer(said, spans) -> None:
    sample = Sample(tokens=[1])
    sample.append_response_tokens(ARGS, tokens=[1, 2, 3], log_probs=[-1.0] * 3, meta_info=said)
    assert sample.weight_versions == spans


@pytest.mark.parametrize(
    ("reason", "status"),
    [("length", Status.TRUNCATED), ("abort", Status.ABORTED), ("odd", Status.PENDING)],
)
def test_the_finish_reason_becomes_the_status(reason, status) -> None:
    sample = Sample(tokens=[1])
    meta = {"finish_reason": {"type": reason}, "prompt_tokens": 5}
    sample.append_response_tokens(ARGS, meta_info=meta, update_terminal_info=False)
    assert sample.status is Status.PENDING
    sample.append_response_tokens(ARGS, meta_info=meta)
    assert sample.status is status and sample.prefix_cache_info.total_prompt_tokens == 5


def test_routed_experts_are_of_the_answer() -> None:
    sample = Sample(tokens=[1])
    first, second = np.arange(4, dtype=np.int32), np.arange(10, 12, dtype=np.int32)
    for experts, start, tokens in ((first, 0, [2, 3]), (second, 2, [4])):
        text = base64.b64encode(experts.tobytes()).decode()
        said = {"routed_experts": text, "routed_experts_start_len": start}
        logs = [-1.0] * len(tokens)
        sample.append_response_tokens(ARGS, tokens=tokens, log_probs=logs, meta_info=said)
    assert sample.rollout_routed_experts.tolist() == [[[0], [1]], [[2], [3]], [[10], [11]]]
    with pytest.raises(ValueError, match=r"not \(4, 2, 1\)"):
        sample.append_response_tokens(
            ARGS, tokens=[5], log_probs=[-1.0], meta_info={"routed_experts": text}
        )
    with pytest.raises(ValueError, match=r"append_response_tokens\(args, tokens="):
        sample.append_response_tokens(meta_info=said)


@pytest.mark.parametrize("given", [None, [-1.0]])
def test_a_generated_token_needs_its_log_prob(given) -> None:
    with pytest.raises(ValueError, match="2 generated tokens need 2 log-probs"):
        Sample(tokens=[1]).append_response_tokens(ARGS, tokens=[2, 3], log_probs=given)
