"""What a user's function raises is told with the line of its own file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError, DataError, UserFunctionError
from pipeline.core.user_errors import in_words, name_errors, names_a_hook, told
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


RAISES = """
import asyncio, sys

async def function(what):
    if what == "cancelled":
        other = asyncio.ensure_future(asyncio.sleep(0))
        other.cancel()
        await other
    if what == "waits":
        await asyncio.Event().wait()
    if what == "exit":
        sys.exit(3)
    if what == "interrupt":
        raise KeyboardInterrupt
    return 1 / 0
"""


@pytest.mark.parametrize(
    ("what", "said", "line"),
    [
        ("divides", "ZeroDivisionError: division by zero", 15),
        ("exit", "SystemExit: 3", 12),
        ("interrupt", "KeyboardInterrupt", 14),
        ("cancelled", "CancelledError", 8),
    ],
)
async def test_whatever_an_awaited_function_raises_is_its_failure(
    what: str, said: str, line: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)
    function = load_function(f"{file}:function")
    texts = []
    for _ in range(2):
        with pytest.raises(Exception) as caught, told(function, "--custom-rm-path"):
            await function(what)
        texts.append(str(caught.value))
        if not isinstance(caught.value, UserFunctionError):
            texts[-1] = in_words(caught.value)
    assert texts == [f"{said} (--custom-rm-path, {file} line {line})"] * 2
    assert names_a_hook(texts[0]) and not names_a_hook("EngineError: engine 0 is gone")
    (record,) = caplog.records  # once
    assert f'File "{file}", line {line}, in function' in record.getMessage()
    assert record.__dict__["file_only"]


async def test_a_cancellation_from_outside_passes(tmp_path: Path) -> None:
    file = tmp_path / "raises.py"
    file.write_text(RAISES)
    function = load_function(f"{file}:function")
    began = asyncio.Event()

    async def call() -> None:
        with told(function, "--flag"):
            began.set()
            await function("waits")

    task = asyncio.create_task(call())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("error", ["SystemExit(1)", "KeyboardInterrupt()", "OSError()"])
def test_a_plain_function_that_leaves_is_told_of_as_one_that_fails(
    error: str, tmp_path: Path
) -> None:
    file = tmp_path / "leaves.py"
    file.write_text(f"def function():\n    raise {error}\n")
    with pytest.raises(UserFunctionError, match=rf"{error[:-3]}.*leaves.py line 2") as caught:
        name_errors(load_function(f"{file}:function"), "--flag", "leaves.py")()
    assert caught.value.exit_code == 2


def test_a_file_that_leaves_while_it_is_imported_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "leaves.py"
    file.write_text("import sys\nsys.exit('no token')\n")
    with pytest.raises(ConfigError, match=r"SystemExit: no token .*leaves.py, line 2"):
        load_function(f"{file}:function")


def test_a_class_that_cannot_be_made_is_a_hook_s_failure(tmp_path: Path) -> None:
    file = tmp_path / "environment.py"
    file.write_text("class Environment:\n    def __init__(self, args):\n        1 / 0\n")
    make = name_errors(load_function(f"{file}:Environment"), "--environment-path", str(file))
    with pytest.raises(UserFunctionError) as caught:
        make(None)
    assert names_a_hook(str(caught.value)), caught.value
