"""What continuous integration, the hooks and the contributor's pages call is there, and nobody
finds out on the first push that it is not."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted(p for p in (ROOT / ".github").rglob("*") if p.is_file() and p not in WORKFLOWS)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *TEMPLATES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def jobs() -> dict[str, dict[str, Any]]:
    return {
        f"{path.name}:{name}": job
        for path in WORKFLOWS
        for name, job in yaml.safe_load(path.read_text())["jobs"].items()
    }


def steps() -> list[str]:
    """Every command that a workflow or .ci/run gives to a shell, for each Python of its matrix."""
    found = []
    for job in jobs().values():
        pythons = job.get("strategy", {}).get("matrix", {}).get("python", [""])
        runs = [step["run"] for step in job["steps"] if "run" in step]
        found += [run.replace("${{ matrix.python }}", p) for run in runs for p in pythons]
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    found += [line for line in script if line.startswith("make ")]
    return sorted(set(found))


def mentioned() -> list[str]:
    """`make TARGET` in running text."""
    found = {m for page in PAGES for m in re.findall(r"`make ([a-z][a-z-]*)", page.read_text())}
    return sorted(found)


def dry(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True)


def test_something_is_looked_at() -> None:
    assert WORKFLOWS and TEMPLATES and {"make test"} <= set(steps()) and "unit-light" in mentioned()


@pytest.mark.parametrize("command", steps())
def test_what_a_workflow_runs_is_a_target_of_make(command: str) -> None:
    first, *words = shlex.split(command)
    assert first == "make", "the Makefile is where commands are"
    assert "$" not in command, "a placeholder that nothing fills"
    done = dry(*words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", mentioned())
def test_what_pages_and_templates_speak_of_is_a_target_of_make(target: str) -> None:
    assert dry(target).returncode == 0


def test_the_pythons_of_the_matrix_are_those_that_the_package_is_for() -> None:
    low, high = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    supported = {f"3.{minor}" for minor in range(int(low), int(high))}
    for name, job in jobs().items():
        given = job.get("strategy", {}).get("matrix", {}).get("python")
        if given is not None:
            assert set(given) == supported, name


def test_a_python_that_does_not_run_fails_the_job_instead_of_skipping_it(tmp_path: Path) -> None:
    """Without any it is skipped, and says so; one that was asked for must be there, though an
    environment of another is."""
    there = tmp_path / "bin" / "python"
    there.parent.mkdir()
    there.write_text("#!/bin/sh\necho Python 3.12.1\n")
    there.chmod(0o755)
    asked = ["make", "unit-light", "LIGHT_PYTHON=/nowhere/python3.12", f"LIGHT_VENV={tmp_path}"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "/nowhere/python3.12" in done.stderr


def test_the_hooks_are_installed_with_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    pinned = (ROOT / "requirements" / "cpu.txt").read_text()
    packages = {"ruff": "ruff", "lint-imports": "import-linter"}
    for hook in hooks:
        command = Path(shlex.split(hook["entry"])[0])
        assert command.parent == Path(".venv/bin") and f"\n{packages[command.name]}==" in pinned
        assert (Path(sys.prefix) / "bin" / command.name).exists()


def test_paths_that_workflows_name_are_there() -> None:
    for path in WORKFLOWS:
        for pattern in re.findall(r"cache-dependency-path: (\S+)", path.read_text()):
            assert list(ROOT.glob(pattern)), pattern
