"""How `make` finds a Python, and what it says where there is none for it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PATH of our own: `python9.9` is there and does not run."""
    (tmp_path / "bin").mkdir()
    write(tmp_path / "bin" / "python9.9", "echo 'python9.9: command not found' >&2; exit 127")
    return tmp_path


def write(file: Path, script: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)


def find(folder: Path, *versions: str) -> str:
    path = f"{folder / 'bin'}:/usr/bin:/bin"
    return subprocess.run(
        [ROOT / "requirements" / "find_python.sh", *versions],
        env={"PATH": path, "PYENV_ROOT": str(folder / "pyenv"), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_the_first_that_runs_is_taken(folder: Path) -> None:
    name = f"python{THIS}"
    write(folder / "bin" / name, f'exec {shlex.quote(sys.executable)} "$@"')
    assert find(folder, "9.9") == ""
    assert find(folder, "9.9", THIS) == name


def test_one_of_another_version_is_not_taken(folder: Path) -> None:
    write(folder / "bin" / "python9.9", f'exec {shlex.quote(sys.executable)} "$@"')
    assert find(folder, "9.9") == ""


def test_pyenvs_are_found_though_their_names_on_the_path_do_not_run(folder: Path) -> None:
    name = f"python{THIS}"
    write(folder / "bin" / name, "exit 127")
    real = folder / "pyenv" / "versions" / f"{THIS}.7" / "bin" / name
    write(real, f'exec {shlex.quote(sys.executable)} "$@"')
    assert find(folder, THIS) == str(real)


@pytest.mark.parametrize(
    "python, said",
    [
        ("", "but neither Python 3.11 nor 3.12 was found: install it"),
        ("/nowhere/python", "but '/nowhere/python' does not run: install it"),
    ],
)
def test_setup_says_in_one_line_what_python_it_needs(python: str, said: str) -> None:
    setup = ROOT / "requirements" / "setup.sh"
    done = subprocess.run([setup, "cpu", python, "/nowhere"], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_what_the_second_python_leaves_out_is_there() -> None:
    options = (ROOT / "tests" / "light.txt").read_text().split()
    files = [re.sub(r"^--\w+=|::.*", "", option) for option in options]
    assert [file for file in files if not (ROOT / file).exists()] == []


def planned(venv: Path, target: str) -> str:
    """What `make target` would run, with this environment."""
    words = ["make", "-n", "-C", str(ROOT), target, f"VENV={venv}", "PYTHON=python"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("stamps", "target", "kind"),
    [
        ([], "quickstart", "cpu"),
        ([], "setup-gpu", "gpu"),
        (["cpu"], "quickstart", None),
        (["gpu"], "quickstart", None),
        (["gpu"], "lint", None),
        (["gpu"], "setup", None),
        (["cpu"], "setup-gpu", "gpu"),
    ],
)
def test_no_command_installs_over_what_is_there(
    tmp_path: Path, stamps: list[str], target: str, kind: str | None
) -> None:
    for stamp in stamps:
        (tmp_path / f".installed-{stamp}").touch()
    found = re.findall(r"requirements/setup.sh (\w+)", planned(tmp_path, target))
    assert found == ([kind] if kind else [])
