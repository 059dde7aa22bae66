"""A multi-turn agent with one tool. The model writes `<calc>EXPR</calc>` and reads
`<result>VALUE</result>`.

    python train_async.py ... --custom-generate-function-path examples/calculator_agent.py \
        --max-turns 4

What the tool said is in the context of the next turn, has loss mask 0, and is never trained on.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from slipstream import Sample, open_session

OPEN, CLOSE = "<calc>", "</calc>"
MAX_CHARACTERS = 200  # of an expression
MAX_BITS = 512  # of a number anywhere in it: bounds time and memory, for products and for powers
MAX_EXPONENT = 512
MAX_DIGITS = 40  # of an answer

Number = int | Fraction

OPERATORS: Mapping[type[ast.AST], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: Fraction(a) / Fraction(b),
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: _power(a, b),
}


class CalculatorError(Exception):
    """What is wrong with an expression, in words for the model."""


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> Sample:
    """Let the model call the calculator until it answers, or until turns or tokens are used up."""
    stop = [*sampling_params.get("stop", ()), CLOSE]
    calls = 0
    async with open_session(args, sample, sampling_params) as session:
        while not session.done:
            turn = await session.generate(stop=stop)
            expression = find_call(turn.text)
            if expression is None:
                break
            calls += session.append_tool(f"<result>{answer(expression)}</result>")
    sample.metadata["num_calls"] = calls
    return sample


def find_call(text: str) -> str | None:
    """The expression of the last call in `text`, if it is a whole one. (The last token may reach
    beyond its end.)"""
    _, found, after = text.rpartition(OPEN)
    expression, closed, _ = after.partition(CLOSE)
    return expression if found and closed else None


def answer(expression: str) -> str:
    """The value in decimal digits, or `error: ...`: a wrong call is something to learn from, not a
    failure."""
    try:
        value = calculate(expression)
    except CalculatorError as error:
        return f"error: {error}"
    text = str(value) if value.denominator == 1 else f"{float(value):.10g}"
    return text if len(text) <= MAX_DIGITS else "error: the result is too long"


def calculate(expression: str) -> Number:
    """Exact arithmetic on + - * / // % ** and brackets. Nothing is evaluated but numbers; every
    step is bounded in size.

    Raises CalculatorError for everything else.
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculatorError(f"longer than {MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CalculatorError("not an expression") from None
    return _value(tree.body)


def _value(node: ast.AST) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            try:
                return _bounded(Fraction(str(number)))
            except ValueError:  # inf, from a literal such as 1e999
                raise CalculatorError("number too large") from None
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATORS:
            try:
                return _bounded(OPERATORS[type(op)](_value(left), _value(right)))
            except ZeroDivisionError:
                raise CalculatorError("division by zero") from None
    raise CalculatorError("only numbers, + - * / // % ** and brackets are allowed")


def _power(base: Number, exponent: Number) -> Number:
    if exponent.denominator != 1 or abs(int(exponent)) > MAX_EXPONENT:
        raise CalculatorError(f"an exponent must be a whole number up to {MAX_EXPONENT}")
    size = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if size * abs(int(exponent)) > 2 * MAX_BITS:
        raise CalculatorError("number too large")
    return Fraction(base) ** int(exponent)


def _bounded(value: Number) -> Number:
    if max(abs(value.numerator).bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise CalculatorError("number too large")
    return value
