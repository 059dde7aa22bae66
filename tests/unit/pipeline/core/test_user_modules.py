"""A user's file and what lies beside it: found as for a script, and apart from everybody else's."""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import multiprocessing
import pickle
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.core.errors import ConfigError
from pipeline.core.user_modules import OURS, folder_of
from pipeline.core.userfn import load_function

ROOT = Path(__file__).resolve().parents[4]
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return make


def call(file: Path, name: str = "f") -> Any:
    return load_function(f"{file}:{name}")()


IMPORTS = {
    "a module": "import helper\ndef f(): return helper.WHO",
    "a name of it": "from helper import WHO\ndef f(): return WHO",
    "under another name": "import helper as h\ndef f(): return h.WHO",
    "all of it": "from helper import *\ndef f(): return WHO",
    "in a function": "def f():\n    import helper\n    return helper.WHO",
    "in a method": "class C:\n    def g(self):\n        import helper\n        return helper.WHO\n"
    "def f(): return C().g()",
    "in code that is made": "def f():\n    space = {}\n    exec('import helper', space)\n"
    "    return space['helper'].WHO",
    "a module in a package": "import tools.deep.search\ndef f(): return tools.deep.search.WHO",
    "its last part": "import tools.deep.search as s\ndef f(): return s.WHO",
    "from a package": "from tools.deep import search\ndef f(): return search.WHO",
    "relative": "from .helper import WHO\ndef f(): return WHO",
    "relative, the module": "from . import helper\ndef f(): return helper.WHO",
    "through importlib": "import importlib\n"
    "def f(): return importlib.import_module('.helper', __package__).WHO",
}


@pytest.mark.parametrize("kind", IMPORTS)
def test_two_folders_each_have_their_own_helpers(write: Write, kind: str) -> None:
    """Read in turns, so that what one has imported is there when the other imports."""
    files = {}
    for who in ("one", "two"):
        write(f"{who}/helper.py", f"WHO = {who!r}\n")
        # a module in a package sees the file's neighbours too, as in a script
        write(f"{who}/tools/deep/search.py", "from helper import WHO\n")
        write(f"{who}/tools/__init__.py", "")
        files[who] = write(f"{who}/reward.py", IMPORTS[kind] + "\n")
    functions = {who: load_function(f"{file}:f") for who, file in files.items()}
    for who in ("one", "two", "one"):
        assert functions[who]() == who
    assert "helper" not in sys.modules
    assert not any(str(file.parent) in sys.path for file in files.values())


def test_a_helper_is_loaded_once_for_all_files_of_its_folder(write: Write) -> None:
    write("helper.py", "seen = []\n")
    one = write("reward.py", "from helper import seen\ndef f(): return seen\n")
    two = write("generate.py", "def f():\n    import helper\n    return helper.seen\n")
    helper = write("helper.py", "seen = []\ndef f(): return seen\n")
    assert call(one) is call(two) is call(helper)


FORMS = {
    "a file": ("{name}.py", "import {name}\ndef f(): return {name}.MINE"),
    "a package": ("{name}/__init__.py", "from {name} import MINE\ndef f(): return MINE"),
    "a folder": ("{name}/mine.py", "from {name} import mine\ndef f(): return mine.MINE"),
    "a module in a folder": (
        "{name}/mine.py",
        "def f():\n    import {name}.mine\n    return {name}.mine.MINE",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(OURS))
def test_a_name_of_ours_is_the_users_in_his_folder_and_ours_elsewhere(
    write: Write, name: str, form: str
) -> None:
    place, program = FORMS[form]
    write(place.format(name=name), "MINE = 'mine'\n")
    file = write("reward.py", program.format(name=name) + "\n")
    assert call(file) == "mine"
    ours = importlib.import_module(name)
    assert not hasattr(ours, "MINE")
    assert not hasattr(ours, "mine")
    assert ROOT in Path(ours.__file__ or "").parents


@pytest.mark.parametrize("beside", ["pipeline.py", "pipeline/mine.py", "slipstream.py"])
def test_ours_is_imported_beside_a_users_file_of_the_same_name(write: Write, beside: str) -> None:
    from pipeline.core.types import Sample

    write(beside, "MINE = 1\n")
    program = "from pipeline.core.types import Sample\ndef f(): return Sample\n"
    assert call(write("reward.py", program)) is Sample


def test_a_file_that_is_named_as_ours_imports_ours(write: Write) -> None:
    from pipeline.core.types import Sample

    program = "from slipstream import Sample\ndef f(): return Sample\n"
    assert call(write("slipstream.py", program)) is Sample


def test_the_names_that_are_ours_are_those_of_the_house() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert {*project["importlinter"]["root_packages"], "train_async"} == OURS


def test_a_file_does_not_import_itself_in_the_place_of_another_module(write: Write) -> None:
    file = write("json.py", "import json\ndef f(): return json\n")
    assert call(file) is json


@pytest.mark.parametrize("content", ["data.bin", "make.py"])
def test_a_folder_of_data_hides_no_package(write: Write, content: str) -> None:
    write(f"numpy/{content}", "")
    assert call(write("reward.py", "def f():\n    import numpy\n    return numpy\n")) is np


def test_a_folder_on_the_search_path_is_not_imported_twice(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write("known_to_all.py", "class C: ...\n")
    file = write("reward.py", "from known_to_all import C\ndef f(): return C\n")
    assert call(file) is importlib.import_module("known_to_all").C


@pytest.mark.parametrize("name", ["my-reward.py", "reward.v2.py", "2nd.py", "größe.py", "a b.py"])
def test_any_name_of_a_file(write: Write, name: str) -> None:
    write("helper.py", "WHO = 'it'\n")
    assert call(write(name, "from helper import WHO\ndef f(): return WHO\n")) == "it"


def test_the_file_that_is_named_is_loaded_and_not_a_package_beside_it(write: Write) -> None:
    write("search/__init__.py", "def f(): return 'package'\n")
    file = write("search.py", "def f(): return 'file'\n")
    assert call(file) == "file"


def test_a_helper_that_is_not_there_is_named(write: Write) -> None:
    file = write("reward.py", "import helpr\ndef f(): ...\n")
    with pytest.raises(ConfigError, match=r"No module named 'helpr'.*line 1"):
        call(file)


def test_a_helper_that_raises_may_be_repaired(write: Write) -> None:
    file = write("reward.py", "import helper\ndef f(): return helper.X\n")
    write("helper.py", "raise RuntimeError('no key')\n")
    with pytest.raises(ConfigError, match="RuntimeError: no key"):
        call(file)
    write("helper.py", "X = 'now'\n")
    assert call(file) == "now"


def test_many_threads_load_a_file_once(write: Write) -> None:
    write("helper.py", "seen = []\n")
    program = "import helper\nhelper.seen.append(1)\ndef f(): return helper.seen\n"
    file = write("reward.py", program)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: call(file), range(32)))
    assert all(answer == [1] for answer in answers)


SCORE = """\
import dataclasses
import helper

@dataclasses.dataclass
class Score:
    value: float

def f():
    from helper import late
    return Score(late())

def value_of(score):
    import helper
    return score.value + helper.ONE
"""


def call_with(spec: str, *arguments: Any) -> Any:
    return load_function(spec)(*arguments)


@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_other_processes_load_the_same(write: Write, start: str) -> None:
    """There and back: an object of a user's class is made in another process and sent to one."""
    write(
        "helper.py",
        "from pipeline.core.user_modules import folder_of\nONE = 1\ndef late(): return 2.5\n",
    )
    file = write("reward.py", SCORE)
    context = multiprocessing.get_context(start)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        score = pool.submit(load_function, f"{file}:f").result()
        made = pool.submit(call_with, f"{file}:f").result()
        assert made == score()
        assert pool.submit(call_with, f"{file}:value_of", made).result() == 3.5


def test_an_object_is_unpickled_where_the_file_was_never_loaded(write: Write) -> None:
    """As on a learner's rank: only the name of the class is sent."""
    write("helper.py", "def late(): return 2.5\n")
    sent = pickle.dumps(call(write("reward.py", SCORE)))
    program = f"import pipeline.core.userfn, pickle; print(pickle.loads({sent!r}))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout == "Score(value=2.5)\n", answer.stderr


def test_the_package_of_a_folder_can_be_read_back(write: Write, tmp_path: Path) -> None:
    file = write("a b/größe_1.5/reward.py", "def f(): return __package__\n")
    package = call(file)
    assert package.isidentifier()
    assert folder_of(package) == file.parent
    assert folder_of("json") is None
    assert folder_of("slipstream_user_thing") is None
