"""The calculator agent: what it computes, what it refuses, and how it talks."""

from __future__ import annotations

import ast
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.calculator_agent import (
    MAX_BITS,
    CalculatorError,
    answer,
    calculate,
    find_call,
    generate,
)
from examples.custom_reward import reward_func
from pipeline.core.types import Status
from tests.unit.fake_engine import FakeEngineClient, completion, sample, session_args


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3*4", "14"),
        ("(2+3)*4", "20"),
        ("-7//2", "-4"),
        ("7%3", "1"),
        ("2**10", "1024"),
        ("1/4", "0.25"),
        (" 10 - 4.5 ", "5.5"),
        ("2**-1", "0.5"),
    ],
)
def test_arithmetic(expression: str, value: str) -> None:
    assert answer(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "(1).__class__",
        "[1]",
        "'a'*9",
        "True",
        "x",
        "f(1)",
        "1 if 1 else 2",
        "",
        "1+",
        "lambda: 1",
        "9**9**9",
        "2**100000",
        "9**500*9**500",
        "1/0",
        "5%0",
        "(1/3)**700",
        "1e400",
        "1e999999999",
        "1" * 201,
        "(" * 90 + "1" + ")" * 90 + "x",
    ],
)
def test_everything_else_is_an_error_for_the_model_to_read(expression: str) -> None:
    with pytest.raises(CalculatorError):
        calculate(expression)
    assert answer(expression).startswith("error: ")


@given(
    st.recursive(
        st.integers(0, 99).map(str),
        lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
            lambda t: f"({''.join(t)})"
        ),
        max_leaves=20,
    )
)
def test_agrees_with_python_on_whole_numbers(expression: str) -> None:
    if len(expression) <= 200:
        assert calculate(expression) == eval(
            compile(ast.parse(expression, mode="eval"), "test", "eval")
        )  # generated above, nothing foreign


@given(st.text("0123456789+-*/%().e ", max_size=60))
def test_results_are_bounded(expression: str) -> None:
    try:
        value = Fraction(calculate(expression))
    except CalculatorError:
        return
    assert max(abs(value.numerator).bit_length(), value.denominator.bit_length()) <= MAX_BITS


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("so <calc>1+1</calc>", "1+1"),
        ("<calc>1</calc> or <calc>2</calc>\n", "2"),
        ("<calc>1</calc> <calc>2", None),
        ("42", None),
        ("</calc>", None),
    ],
)
def test_calls_are_found(text: str, call: str | None) -> None:
    assert find_call(text) == call


async def test_the_agent_calls_reads_and_answers() -> None:
    client = FakeEngineClient("<calc>12*3</calc>", "<calc>36+1</calc>", "It is 37.")
    made = await generate(
        session_args(client), sample("12*3+1? "), {"max_new_tokens": 200, "stop": ["\n"]}
    )
    assert (
        made.response
        == "<calc>12*3</calc><result>36</result><calc>36+1</calc><result>37</result>It is 37."
    )
    trained = bytes(
        t for t, m in zip(made.tokens[made.prompt_length :], made.loss_mask or [], strict=True) if m
    )
    assert trained == b"<calc>12*3</calc><calc>36+1</calc>It is 37."
    assert made.metadata == {"num_calls": 2} and made.status is Status.COMPLETED
    assert client.asked[0][1]["stop"] == ["\n", "</calc>"]


async def test_the_agent_stops_at_its_turn_limit() -> None:
    client = FakeEngineClient(completion("<calc>1+1</calc>"))
    made = await generate(session_args(client, max_turns=3), sample(), {"max_new_tokens": 500})
    assert (
        len(client.asked) == 3
        and made.metadata == {"num_calls": 2}
        and made.status is Status.TRUNCATED
    )


async def test_the_example_reward_scores_the_last_number() -> None:
    from types import SimpleNamespace

    args = SimpleNamespace(rollout_max_response_len=100)
    right = await reward_func(
        args, sample(response="first 3, then 37", response_length=20, label="37")
    )
    wrong = await reward_func(args, sample(response="37, no, 3", response_length=20, label="37"))
    assert right == {"score": pytest.approx(1.08), "correct": 1.0, "brevity": pytest.approx(0.8)}
    assert wrong["score"] == 0.0
