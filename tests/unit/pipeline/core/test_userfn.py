"""Functions that a user names: loaded, checked without running them, and what is said when that
fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.userfn import check_function, load_function


@pytest.fixture
def write(tmp_path: Path):
    def make(name: str, text: str) -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


def test_a_file_with_and_without_a_name(write) -> None:
    path = write("mine.py", "def generate(): return 1\ndef other(): return 2\n")
    assert load_function(path, "generate")() == 1
    assert load_function(f"{path}:other", "generate")() == 2


def test_a_file_is_loaded_once(write) -> None:
    path = write("state.py", "seen = []\ndef a(): return seen\ndef b(): return seen\n")
    assert load_function(f"{path}:a")() is load_function(f"{path}:b")()


def test_two_files_of_one_name_are_two(write) -> None:
    one, two = (
        write("a/reward.py", "def f(): return 1\n"),
        write("b/reward.py", "def f(): return 2\n"),
    )
    assert [load_function(one, "f")(), load_function(two, "f")()] == [1, 2]


def test_a_file_may_import_its_neighbour(write) -> None:
    write("neighbour_of_agent.py", "TOOL = 7\n")
    path = write("agent.py", "from neighbour_of_agent import TOOL\ndef f(): return TOOL\n")
    assert load_function(path, "f")() == 7


def test_modules_with_dot_and_colon() -> None:
    import json.decoder

    assert (
        load_function("json.decoder.JSONDecoder")
        is load_function("json.decoder:JSONDecoder")
        is json.decoder.JSONDecoder
    )
    check_function("json.decoder:JSONDecoder")


BAD = {
    "mine.py:genrate": "did you mean 'generate'",
    "mine.py:LIMIT": "",
    "nowhere.py:f": "no file",
    "broken.py:f": "broken.py",
    "mine.py": "names no function",
    "not a spec": "names no function",
    "no_such_package.sub.f": "no module named 'no_such_package'",
    "json:loadd": "did you mean 'load'",
}


@pytest.mark.parametrize("spec", BAD)
def test_what_cannot_be_loaded(
    write, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("mine.py", "LIMIT = 3\nasync def generate(): ...\n")
    write("broken.py", "def f(:\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_function(spec)
    assert spec in str(caught.value)
    assert BAD[spec] in str(caught.value)
    if spec != "mine.py:LIMIT":  # that it is no function shows only when it is imported
        with pytest.raises(ConfigError) as checked:
            check_function(spec)
        assert BAD[spec] in str(checked.value)


def test_a_file_that_raises_names_its_line_and_may_be_repaired(write) -> None:
    path = write("raises.py", "x = 1\nraise RuntimeError('no key')\ndef f(): ...\n")
    with pytest.raises(ConfigError, match=r"RuntimeError: no key.*line 2"):
        load_function(path, "f")
    write("raises.py", "def f(): return 'now'\n")
    assert load_function(path, "f")() == "now"


def test_a_module_that_misses_a_dependency_is_not_called_missing_itself(write) -> None:
    path = write("needs.py", "import no_such_dependency\ndef f(): ...\n")
    with pytest.raises(
        ConfigError,
        match="could not be imported: ModuleNotFoundError: No module named 'no_such_dependency'",
    ):
        load_function(path, "f")


def test_checking_runs_nothing(write, tmp_path: Path) -> None:
    path = write(
        "effects.py",
        f"open({str(tmp_path / 'touched')!r}, 'w')\nif True:\n    def f(): ...\ng = f\n",
    )
    check_function(f"{path}:f")
    check_function(f"{path}:g")
    assert not (tmp_path / "touched").exists()


def test_a_star_import_may_bring_any_name(write) -> None:
    check_function(write("star.py", "from json import *\n"), "loads")
