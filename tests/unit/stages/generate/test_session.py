"""Multi-turn sessions: tokens, masks, budgets, turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import EngineError, GenerateError
from pipeline.core.types import Sample, Status, VersionSpan
from stages.engine.mock import MockTokenizer
from stages.generate.check import check_sample
from stages.generate.session import Session, open_session
from tests.manual_time import ManualTime
from tests.unit.fake_engine import PARAMS, FakeEngineClient, completion, sample, session_args


async def test_two_turns_with_a_tool_between() -> None:
    client = FakeEngineClient(completion("ask", version=3), completion("done", version=4))
    made = sample("Q: ")
    async with open_session(session_args(client), made, PARAMS) as session:
        await session.generate()
        assert session.append_tool("=7;")
        await session.generate(temperature=0.5)
    assert bytes(made.tokens) == b"Q: ask=7;done"
    assert made.response == "ask=7;done" and made.response_length == 10
    assert made.loss_mask == [1] * 3 + [0] * 3 + [1] * 4
    assert made.rollout_log_probs == [-0.01, -0.02, -0.03, 0, 0, 0, -0.01, -0.02, -0.03, -0.04]
    assert made.weight_versions == [VersionSpan(3, 0, 3), VersionSpan(4, 6, 10)]
    assert made.status is Status.COMPLETED
    check_sample(made, fallback_version=None)
    (first, _, one), (second, params, two) = client.asked
    # the prefix is what was sampled, to the token
    assert bytes(first) == b"Q: " and bytes(second) == b"Q: ask=7;"
    assert one == two == made.session_id is not None
    assert params["temperature"] == 0.5 and client.asked[0][1]["temperature"] == 1.0


async def test_the_budget_covers_all_turns_and_tools() -> None:
    client = FakeEngineClient("aaaa", completion("bb", finish="length"))
    made = sample()
    async with open_session(session_args(client), made, {"max_new_tokens": 10}) as session:
        await session.generate()
        session.append_tool([1, 2, 3, 4])
        assert session.remaining == 2
        await session.generate()
        assert session.done
        with pytest.raises(GenerateError, match="no further turn: 2 of 8 turns, 0 tokens left"):
            await session.generate()
    assert [asked[1]["max_new_tokens"] for asked in client.asked] == [10, 2]
    assert made.status is Status.TRUNCATED


async def test_a_tool_result_that_does_not_fit_is_left_out_whole() -> None:
    made = sample()
    async with open_session(
        session_args(FakeEngineClient("abcd")), made, {"max_new_tokens": 8}
    ) as session:
        await session.generate()
        assert not session.append_tool("1234")  # fits, but leaves no token to answer with
        assert session.done
    assert made.response == "abcd" and made.status is Status.TRUNCATED


async def test_nobody_reads_a_tool_result_after_the_last_turn() -> None:
    made = sample()
    async with open_session(
        session_args(FakeEngineClient("x"), max_turns=1), made, PARAMS
    ) as session:
        await session.generate()
        assert session.done and not session.append_tool("5")
    assert made.response == "x" and made.status is Status.TRUNCATED


async def test_the_context_length_bounds_a_turn() -> None:
    client = FakeEngineClient("abc")
    async with open_session(
        session_args(client, context_length=12), sample("0123456"), PARAMS
    ) as session:
        await session.generate()
        assert session.remaining == 2
    assert client.asked[0][1]["max_new_tokens"] == 5


@pytest.mark.parametrize(("wanted", "status"), [(2, Status.COMPLETED), (8, Status.TRUNCATED)])
async def test_a_turn_cut_by_its_own_limit_may_be_continued(wanted: int, status: Status) -> None:
    """A turn shorter than it was asked to be at most was cut by the engine: that ends the
    session."""
    client = FakeEngineClient(completion("ab", finish="length"), completion("c"))
    made = sample()
    async with open_session(session_args(client), made, PARAMS) as session:
        await session.generate(max_new_tokens=wanted)
        if not session.done:
            await session.generate()
    assert made.status is status


async def test_time_outside_the_engine_is_counted() -> None:
    time = ManualTime()
    made = sample()
    async with open_session(
        session_args(FakeEngineClient("a", time=time, seconds=5.0), time=time), made, PARAMS
    ) as session:
        await session.generate()
        time.advance(2.0)
        session.append_tool("b")
        await session.generate()
    assert made.non_generation_time == 2.0


async def test_a_failure_leaves_the_sample_unfinished() -> None:
    made = sample()
    with pytest.raises(EngineError, match="gone"):
        async with open_session(
            session_args(FakeEngineClient(EngineError("gone"))), made, PARAMS
        ) as session:
            await session.generate()
    assert made.status is Status.PENDING


async def test_a_status_of_ones_own_stays() -> None:
    made = sample()
    async with open_session(session_args(FakeEngineClient("a")), made, PARAMS) as session:
        await session.generate()
        made.status = Status.TRUNCATED
    assert made.status is Status.TRUNCATED


async def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(GenerateError, match="no prompt tokens"):
        async with open_session(session_args(FakeEngineClient("a")), Sample(prompt="x"), PARAMS):
            pass


@given(
    st.lists(
        st.tuples(st.text("ab", min_size=1, max_size=9), st.text("xyz", max_size=9)), max_size=8
    ),
    st.integers(1, 40),
    st.integers(1, 5),
)
async def test_whatever_happens_the_sample_is_consistent(
    turns: list[tuple[str, str]], budget: int, max_turns: int
) -> None:
    made = sample()
    session = Session(
        made,
        client := FakeEngineClient("?"),
        MockTokenizer(),
        {"max_new_tokens": budget},
        max_turns=max_turns,
    )
    for said, tool in turns:
        if session.done:
            break
        client.script = [
            completion(
                said[: session.remaining],
                finish="length" if len(said) >= session.remaining else "stop",
            )
        ]
        await session.generate()
        session.append_tool(tool)
    session.finish()
    assert made.response_length <= budget and session.turns <= max_turns
    if session.turns:
        check_sample(made, fallback_version=None)
        assert bytes(made.tokens[3:]).decode() == made.response
        masked = {b for b, m in zip(made.tokens[3:], made.loss_mask or [], strict=True) if not m}
        assert masked <= set(b"xyz")
