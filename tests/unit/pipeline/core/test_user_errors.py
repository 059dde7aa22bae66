"""What a user's function raises is told with the line of its own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import DataError, UserFunctionError
from pipeline.core.user_errors import in_words, name_errors
from pipeline.core.userfn import load_function

SOURCE = """
import functools, json

def inner(text):
    return json.loads(text)

def function(text):
    return inner(text)

def traced(f):
    @functools.wraps(f)
    def call(*args):
        return f(*args)
    return call

decorated = traced(function)

class Scorer:
    def __call__(self, text):
        return function(text)

scorer = Scorer()

class Source:
    def __init__(self, text):
        function(text)

    def get(self, text):
        return function(text)

method = Source("1").get
built_in = len
"""


def load(name: str, folder: Path) -> Any:
    file = folder / "mine.py"
    file.write_text(SOURCE)
    return load_function(f"{file}:{name}")


@pytest.mark.parametrize("name", ["function", "decorated", "scorer", "method", "Source"])
def test_the_innermost_line_of_the_users_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserFunctionError) as caught:
        name_errors(load(name, tmp_path), "--flag", "mine.py")("{")
    assert str(caught.value).startswith("--flag mine.py raised JSONDecodeError: Expecting ")
    assert str(caught.value).endswith(f"({tmp_path / 'mine.py'} line 5)")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_what_has_no_file_of_the_users_is_told_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserFunctionError) as caught:
        name_errors(load("built_in", tmp_path), "--flag", "mine.py:built_in")(object())
    assert "raised TypeError: " in str(caught.value) and " line " not in str(caught.value)


def test_our_own_errors_pass_as_they_are() -> None:
    def refuses() -> None:
        raise DataError("row 3")

    with pytest.raises(DataError, match=r"^row 3$"):
        name_errors(refuses, "--flag", "mine.py")()


def test_an_error_without_words_is_its_type() -> None:
    assert in_words(KeyError()) == "KeyError"
