"""Unit tests as data sets have them."""

import json
from typing import Any

import pytest

from pipeline.core.unit_tests import AssertTest, CallTest, StdinTest, UnitTest, unit_tests

CALL = CallTest(function="f", arguments=[[1, 2], "a"], expected=3)


@pytest.mark.parametrize(
    ("label", "metadata", "expected"),
    [
        (
            {"inputs": ["1\n2\n", ["1", "2"]], "outputs": ["3\n", ["3", "4"]]},
            {},
            [StdinTest(stdin="1\n2\n", stdout="3\n"), StdinTest(stdin="1\n2", stdout="3\n4")],
        ),
        ({"fn_name": "f", "inputs": [[[1, 2], "a"]], "outputs": [3]}, {}, [CALL]),
        ({"inputs": [[[1, 2], "a"]], "outputs": [3]}, {"fn_name": "f"}, [CALL]),
        (
            [{"input": '[1, 2]\n"a"', "output": "3", "testtype": "functional"}],
            {"func_name": "f"},
            [CALL],
        ),
        (
            [{"input": "1", "output": "2", "testtype": "stdin"}],
            {"func_name": "f"},
            [StdinTest(stdin="1", stdout="2")],
        ),
        (
            ["assert f(1) == 2", "assert f(2) == 3"],
            {"test_imports": ["import math"]},
            [
                AssertTest(code="import math\nassert f(1) == 2"),
                AssertTest(code="import math\nassert f(2) == 3"),
            ],
        ),
        ("assert f(1) == 2", {}, [AssertTest(code="assert f(1) == 2")]),
        (
            "def check(candidate):\n    assert candidate(1)\n",
            {"entry_point": "f"},
            [AssertTest(code="def check(candidate):\n    assert candidate(1)\n\ncheck(f)")],
        ),
        (None, {"tests": ["assert f(1)"]}, [AssertTest(code="assert f(1)")]),
    ],
)
def test_forms(label: Any, metadata: dict[str, Any], expected: list[UnitTest]) -> None:
    assert unit_tests(label, metadata) == expected
    if label is not None:
        assert unit_tests({"ground_truth": label}, metadata) == expected
    if not isinstance(label, str | None):
        assert unit_tests(json.dumps(label), metadata) == expected


@pytest.mark.parametrize(
    ("label", "metadata", "says"),
    [
        (None, {}, "the tests are None"),
        ("42", {}, "the tests are 42"),
        ("forty-two", {}, "forty-two"),
        ([], {}, "expected"),
        ({"inputs": ["1"], "outputs": []}, {}, "1 inputs and 0 outputs"),
        ({"input": ["1"]}, {}, "the keys input"),
        ([{"input": "1"}], {}, "a test is"),
        ([{"input": "1", "output": "2", "testtype": "functional"}], {}, "names no function"),
        ({"inputs": [1], "outputs": [2], "fn_name": "f"}, {}, "a list of arguments"),
        ({"inputs": [[1]], "outputs": [2], "fn_name": "f; g"}, {}, "a function's name"),
        ([{"input": "x", "output": "2", "testtype": "call"}], {"fn_name": "f"}, "line of JSON"),
        ("def check(candidate): assert candidate", {}, "entry_point"),
    ],
)
def test_what_is_refused(label: Any, metadata: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        unit_tests(label, metadata)
