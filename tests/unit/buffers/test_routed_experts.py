"""Routed experts on their way from the engine to the learner: joined over turns, stored,
checked."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffers.decoding import from_batch
from buffers.encoding import to_batch
from buffers.segments import decode, encode
from configs.schema import AlgorithmConfig, RolloutConfig
from pipeline.core.errors import (
    ConfigError,
    DataError,
    EngineError,
    GenerateError,
    ReplayBufferError,
)
from pipeline.core.types import Completion, Group, Sample, Status, VersionSpan, narrow_experts
from stages.advantage import AdvantageHooks, compute_advantages
from stages.engine.mock import MockTokenizer
from stages.engine.spec import EngineSpec, experts_shape
from stages.generate.check import check_sample
from stages.generate.client import SGLangClient
from stages.generate.generate import GenerateStage
from stages.generate.session import open_session
from tests.unit.fake_engine import PARAMS, FakeEngineClient, completion, sample, session_args
from tests.unit.fake_sglang import FakePool, FakeSGLang, answer, says
from tests.unit.stages.generate.test_client import client_of

LAYERS, TOP_K = 3, 2


def routes(num_tokens: int, start: int = 0, mark: int = 0) -> np.ndarray:
    """[num_tokens, LAYERS, TOP_K] numbers that say which token, and which answer, they are of."""
    token = np.arange(start, start + num_tokens)[:, None, None]
    return (mark * 100 + token * 4 + np.arange(LAYERS * TOP_K).reshape(LAYERS, TOP_K) % 4).astype(
        np.int32
    )


def encoded(experts: np.ndarray) -> str:
    return base64.b64encode(experts.astype(np.int32).tobytes()).decode()


def answer_with(experts: Any, ids: tuple[int, ...] = (65, 66, 67)) -> dict[str, Any]:
    body = answer(ids)
    return {**body, "meta_info": {**body["meta_info"], "routed_experts": experts}}


@asynccontextmanager
async def asking(body: dict[str, Any]) -> AsyncIterator[tuple[SGLangClient, FakeSGLang]]:
    async with (
        FakeSGLang([says(body)]).running() as server,
        client_of(FakePool([server.url]), experts_shape=(LAYERS, TOP_K)) as client,
    ):
        yield client, server


# ---- the engine's answer


async def test_the_client_asks_for_experts_and_takes_them_apart() -> None:
    async with asking(answer_with(encoded(routes(4, 1)))) as (client, server):
        done = await client.generate([1, 2], PARAMS)
    assert (
        server.requests[0]["return_routed_experts"] is True
        and server.requests[0]["routed_experts_start_len"] == 0
    )
    assert (
        done.routed_experts is not None
        and done.routed_experts.dtype == np.uint8
        and done.experts_start == 0
    )
    # two of the prompt, two of three sampled: the last was read by nobody
    np.testing.assert_array_equal(done.routed_experts, routes(4, 1))


async def test_the_client_asks_only_for_what_is_not_known() -> None:
    async with (
        asking(answer_with(encoded(routes(1)))) as (client, server),
        client_of(FakePool([server.url])) as plain,
    ):
        done = await client.generate([1, 2], PARAMS, known_experts=3)
        await plain.generate([1, 2], PARAMS)
    assert server.requests[0]["routed_experts_start_len"] == 3 == done.experts_start
    assert "return_routed_experts" not in server.requests[1]


@pytest.mark.parametrize(
    ("experts", "said"),
    [(None, "without routed experts"), (encoded(routes(3)), r"\(4, 3, 2\)"), ("?", "not")],
)
async def test_an_answer_with_other_experts_is_refused(experts: Any, said: str) -> None:
    async with asking(answer_with(experts)) as (client, _):
        with pytest.raises(EngineError, match=said):
            await client.generate([1, 2], PARAMS)


@given(st.lists(st.integers(-1, 70_000), max_size=6))
def test_the_smallest_type_that_holds_them(numbers: list[int]) -> None:
    given_ = np.array(numbers, np.int64).reshape(-1, 1, 1)
    small = narrow_experts(given_)
    assert small.tolist() == given_.tolist()
    assert small.dtype == (
        np.uint8
        if all(0 <= n < 256 for n in numbers)
        else np.int16
        if max(numbers) < 2**15
        else np.int32
    )


# ---- turns


def turn(text: str, start: int, tokens_before: int, mark: int) -> Completion:
    """An answer with the experts of all tokens from `start` on but the last; its marks are its own,
    as under other weights."""
    experts = routes(tokens_before + len(text) - 1 - start, start, mark)
    return dataclasses.replace(
        completion(text, version=mark), routed_experts=experts, experts_start=start
    )


@pytest.mark.parametrize("whole", [False, True])
async def test_turns_are_joined_and_what_is_known_stays(whole: bool) -> None:
    """`whole`: an engine that says again how the prefix went (now, on newer weights) changes
    nothing of what was sampled then."""
    first, second = turn("ask", 0, 3, mark=1), turn("done", 0 if whole else 5, 9, mark=2)
    client = FakeEngineClient(first, second)
    seen: list[int] = []
    made = sample("Q: ")

    class Asked(FakeEngineClient):
        async def generate(
            self,
            input_ids: Any,
            sampling_params: Any,
            *,
            session_id: Any = None,
            known_experts: int = 0,
        ) -> Completion:
            seen.append(known_experts)
            return await client.generate(input_ids, sampling_params, session_id=session_id)

    async with open_session(session_args(Asked()), made, PARAMS) as session:
        await session.generate()
        session.append_tool("=7;")
        await session.generate()
    assert seen == [0, 5]  # "Q: ask" without its last token
    joined = made.rollout_routed_experts
    assert joined.shape == (len(made.tokens) - 1, LAYERS, TOP_K)
    np.testing.assert_array_equal(joined[:5], routes(5, 0, 1))  # Q: as
    np.testing.assert_array_equal(joined[5:], routes(7, 5, 2))  # k=7;don
    check_sample(made, fallback_version=None, needs_experts=True)


def test_a_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens 0 to 1"):
        sample().add_routed_experts(routes(3), start=2)


async def test_a_single_turn_keeps_them() -> None:
    stage = GenerateStage(
        FakeEngineClient(turn("abc", 0, 3, mark=1)), MockTokenizer(), RolloutConfig()
    )
    (made,) = await stage([sample("Q: ")])
    assert made.status is Status.COMPLETED and made.rollout_routed_experts.shape == (
        5,
        LAYERS,
        TOP_K,
    )


def finished(experts: np.ndarray | None, *, mask: list[int] | None = None) -> Sample:
    made = sample("abc")
    made.append_response_tokens([1, 2, 3, 4], log_probs=[-0.5] * 4, spans=[VersionSpan(0, 0, 4)])
    made.loss_mask, made.status, made.rollout_routed_experts, made.reward = (
        mask or [1] * 4,
        Status.COMPLETED,
        experts,
        1.0,
    )
    return made


@pytest.mark.parametrize("num", [6, 5, 4, 7, None])
def test_every_token_that_a_trained_one_was_sampled_from(num: int | None) -> None:
    """3 of the prompt, 4 of the response: 6 were read. With a loss on the first two only, tokens 0
    to 3 must be known."""
    made = finished(None if num is None else routes(num), mask=[1, 1, 0, 0])
    if num in (4, 5, 6):
        check_sample(made, fallback_version=None, needs_experts=True)
    else:
        check_sample(made, fallback_version=None)
        with pytest.raises(GenerateError, match="add_routed_experts"):
            check_sample(made, fallback_version=None, needs_experts=True)


# ---- the buffer


def group_of(*samples: Sample) -> Group:
    return Group(group_index=0, deadline=0, admitted_version=0, samples=samples)


def test_the_buffer_keeps_them_small_and_copies_nothing() -> None:
    group = group_of(finished(routes(6)), finished(None), finished(routes(5).astype(np.int64)))
    data = pa.py_buffer(encode(to_batch(group)))
    batch = decode(data, Path("x"), 0)
    first, none, last = from_batch(batch).samples
    assert none.rollout_routed_experts is None
    assert (
        first.rollout_routed_experts.dtype == np.uint8
        and not first.rollout_routed_experts.flags.writeable
    )
    np.testing.assert_array_equal(first.rollout_routed_experts, routes(6))
    np.testing.assert_array_equal(last.rollout_routed_experts, routes(5))
    assert data.address <= last.rollout_routed_experts.ctypes.data < data.address + data.size


def test_one_wide_sample_widens_its_group() -> None:
    wide = routes(6) + 255
    first, second = from_batch(to_batch(group_of(finished(routes(5)), finished(wide)))).samples
    assert first.rollout_routed_experts.dtype == second.rollout_routed_experts.dtype == np.int16
    np.testing.assert_array_equal(first.rollout_routed_experts, routes(5))
    np.testing.assert_array_equal(second.rollout_routed_experts, wide)


def test_what_are_no_experts_is_refused() -> None:
    with pytest.raises(ReplayBufferError, match="routed_experts"):
        to_batch(group_of(finished(np.array([[[0.5]]]))))


# ---- rows


R3 = AlgorithmConfig(use_rollout_routing_replay=True)


def test_rows_carry_them_only_where_they_are_replayed() -> None:
    group = group_of(finished(routes(6)), finished(routes(6, mark=1)))
    rows = compute_advantages([group], R3, policy_version=0)
    np.testing.assert_array_equal(rows[1].routed_experts, routes(6, mark=1))
    assert [r.routed_experts for r in compute_advantages([group], policy_version=0)] == [None, None]


def test_a_sample_without_them_cannot_be_replayed() -> None:
    with pytest.raises(
        DataError, match=r"no rollout_routed_experts for 7 tokens.*--use-routing-replay"
    ):
        compute_advantages([group_of(finished(None), finished(routes(6)))], R3, policy_version=0)


def converted(samples: list[Sample], **more: Any) -> dict[str, Any]:
    out: dict[str, Any] = {
        "tokens": [s.tokens for s in samples],
        "response_lengths": [s.response_length for s in samples],
    }
    out |= {"rewards": [1.0] * len(samples), "loss_masks": [s.loss_mask for s in samples]}
    return {**out, "rollout_log_probs": [s.rollout_log_probs for s in samples], **more}


def test_a_users_rows_keep_them_or_bring_their_own() -> None:
    group = group_of(finished(routes(6)))
    (row,) = compute_advantages(
        [group], R3, policy_version=0, hooks=AdvantageHooks(convert_samples=converted)
    )
    np.testing.assert_array_equal(row.routed_experts, routes(6))
    own = AdvantageHooks(
        convert_samples=lambda s: converted(s, rollout_routed_experts=[routes(6, mark=1)])
    )
    (row,) = compute_advantages([group], R3, policy_version=0, hooks=own)
    np.testing.assert_array_equal(row.routed_experts, routes(6, mark=1))
    other = AdvantageHooks(convert_samples=lambda s: {**converted(s), "tokens": [[9] * 7]})
    with pytest.raises(DataError, match="other tokens than its sample"):
        compute_advantages([group], R3, policy_version=0, hooks=other)


# ---- what the engine is told


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2}, (4, 2)),
        ({"num_hidden_layers": 4, "n_routed_experts": 8, "num_experts_per_tok": 3}, (4, 3)),
        (
            {
                "text_config": {
                    "num_hidden_layers": 2,
                    "num_local_experts": 8,
                    "num_experts_per_tok": 2,
                }
            },
            (2, 2),
        ),
        ({"num_hidden_layers": 4, "model_type": "qwen3"}, None),
        ({"num_hidden_layers": 4, "num_experts_per_tok": 2, "n_routed_experts": None}, None),
    ],
)
def test_a_dense_model_has_no_experts(
    tmp_path: Path, config: dict[str, Any], shape: tuple[int, int] | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if shape is not None:
        assert experts_shape(tmp_path) == shape
    else:
        with pytest.raises(
            ConfigError, match=r"--use-rollout-routing-replay.*has no experts. Drop the flag"
        ):
            experts_shape(tmp_path)


def test_engines_write_them_down_only_when_asked() -> None:
    spec = EngineSpec(
        index=0, model_path=Path("m"), log_path=Path("l"), device="cuda", dtype="bfloat16"
    )
    assert "enable_return_routed_experts" not in spec.server_args(1, 0, 2)
    args = dataclasses.replace(spec, returns_experts=True).server_args(1, 0, 2)
    assert args["enable_return_routed_experts"] is True
    assert "--enable-return-routed-experts" in dataclasses.replace(
        spec, returns_experts=True
    ).command(1, 0, 2)
