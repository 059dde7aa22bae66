"""What a label means that is a problem's unit tests, in the forms in which data sets have them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXPECTED = (
    'expected {"inputs": [...], "outputs": [...]} (with "fn_name" where a function is called), a'
    ' list of {"input", "output"}, a list of assert statements, or Python that asserts; in the'
    ' label, or in the metadata under "tests"'
)
# where rows and tests name the function: TACO and APPS, LiveCodeBench, HumanEval
_FUNCTION_KEYS = ("fn_name", "func_name", "entry_point")


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinTest:
    """The program reads `stdin` and must print `stdout`."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTest:
    """`function(*arguments)`, of the program or of its class Solution, must return `expected`: all
    of it what JSON can say."""

    function: str
    arguments: Sequence[Any]
    expected: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertTest:
    """`code` runs behind the program and must not raise."""

    code: str


UnitTest = StdinTest | CallTest | AssertTest


def unit_tests(label: Any, metadata: Mapping[str, Any]) -> list[UnitTest]:
    """The tests, at least one. Text may be the JSON of any of these forms:

    - `{"inputs": [...], "outputs": [...]}`: what goes to stdin and must come from stdout, text or a
      list of lines; with "fn_name" the arguments of a call and what it must return (APPS, TACO,
      DeepCoder);
    - a list of `{"input": ..., "output": ..., "testtype": "stdin" or "functional"}`; the lines of a
      functional input are the arguments' JSON (LiveCodeBench);
    - a list of statements, `metadata["test_imports"]` ahead of each (MBPP);
    - Python text; where it defines `check`, that is called with the function that
      `metadata["entry_point"]` names (HumanEval).

    Raises ValueError for anything else."""
    given = metadata.get("tests") if label is None else label
    if isinstance(given, Mapping) and "ground_truth" in given:  # as verl's data have it
        given = given["ground_truth"]
    given = _from_json(given)
    if isinstance(given, Mapping):
        return _paired(given, metadata)
    if isinstance(given, str) and ("assert" in given or "def check(" in given):
        return [AssertTest(code=_called(given, metadata))]
    if isinstance(given, list) and given:
        return [_listed(test, metadata) for test in given]
    raise ValueError(f"the tests are {given!r:.80}: {EXPECTED}")


def _paired(given: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[UnitTest]:
    inputs, outputs = given.get("inputs"), given.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise ValueError(f"the tests have the keys {', '.join(map(str, given))}: {EXPECTED}")
    if len(inputs) != len(outputs):
        raise ValueError(f"the tests have {len(inputs)} inputs and {len(outputs)} outputs")
    function = _function(given, metadata)
    return [_pair(i, o, function) for i, o in zip(inputs, outputs, strict=True)]


def _pair(given: Any, expected: Any, function: str | None) -> UnitTest:
    if function is None:
        return StdinTest(stdin=_lines(given), stdout=_lines(expected))
    if isinstance(given, str):
        given, expected = _arguments(given), _from_json(expected)
    if not isinstance(given, list):
        raise ValueError(f"the input {given!r:.80} for {function}: expected a list of arguments")
    return CallTest(function=function, arguments=given, expected=expected)


def _listed(test: Any, metadata: Mapping[str, Any]) -> UnitTest:
    if isinstance(test, str):
        imports = metadata.get("test_imports") or []
        return AssertTest(code="\n".join([*imports, _called(test, metadata)]))
    if not isinstance(test, Mapping) or not {"input", "output"} <= set(test):
        raise ValueError(f"a test is {test!r:.80}: {EXPECTED}")
    if test.get("testtype", "stdin") == "stdin":
        return StdinTest(stdin=_lines(test["input"]), stdout=_lines(test["output"]))
    function = _function(test, metadata)
    if function is None:
        raise ValueError(
            f"a functional test names no function: expected {', '.join(_FUNCTION_KEYS)} in it or in"
            " the metadata"
        )
    return _pair(test["input"], test["output"], function)


def _function(*places: Mapping[str, Any]) -> str | None:
    """The function that the first of the places names. Raises ValueError for what is no name."""
    for place in places:
        for key in _FUNCTION_KEYS:
            if name := place.get(key):
                if not (isinstance(name, str) and name.isidentifier()):
                    raise ValueError(f"{key} is {name!r:.80}: expected a function's name")
                return name
    return None


def _called(code: str, metadata: Mapping[str, Any]) -> str:
    if "def check(" not in code or "\ncheck(" in code:
        return code
    function = _function(metadata)
    if function is None:
        raise ValueError(
            "the tests define check(candidate), and no entry_point in the metadata names what to"
            " check"
        )
    return f"{code}\ncheck({function})"


def _lines(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(str(line) for line in value)
    return value if isinstance(value, str) else json.dumps(value)


def _arguments(text: str) -> list[Any]:
    """Of a functional input: a line of JSON each."""
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"the input {text!r:.80}: expected a line of JSON an argument") from error


def _from_json(value: Any) -> Any:
    """What JSON text says; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
