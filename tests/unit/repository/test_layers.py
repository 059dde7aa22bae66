"""The floors of the house hold: each kind of forbidden import is planted into a copy, and
`lint-imports` must refuse it."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("slipstream", "pipeline", "stages", "buffers", "configs", "compat", "sandbox")
PLANTED = [
    ("configs/rules/validate.py", "import pipeline.run.runner", "floors"),
    ("configs/flags.py", "import stages.learn.rank", "floors"),
    ("configs/schema/config.py", "import configs.flags", "the command line knows the rules"),
    ("pipeline/schedule/clock.py", "import configs.schema", "floors"),
    ("pipeline/core/types.py", "import pipeline.schedule.clock", "floors"),
    ("pipeline/core/tagged_json.py", "import torch", "are light"),
    ("pipeline/core/types.py", "import compat", "floors"),
    ("pipeline/run/runner.py", "import pipeline.wiring.real", "floors"),
    ("pipeline/run/runner.py", "import ray", "ray is confined"),
    ("pipeline/cli/inspection.py", "import ray", "ray is confined"),
    ("pipeline/telemetry/hub.py", "import torch", "torch is for those who hold tensors"),
    ("pipeline/report/page.py", "import sglang", "sglang is confined"),
    ("pipeline/models/resolve.py", "import megatron.core", "megatron is confined"),
    ("buffers/journal.py", "import stages.batch", "floors"),
    ("buffers/journal.py", "import torch", "torch is for those who hold tensors"),
    ("buffers/ledger.py", "import ray", "ray is confined"),
    ("compat/versions.py", "import pipeline.core.types", "floors"),
    ("sandbox/pool.py", "import pipeline.core.types", "floors"),
    ("sandbox/worker.py", "import psutil", "the standard library only"),
    ("sandbox/inside/view.py", "import sandbox.limits", "within the walls"),
    ("pipeline/cli/main.py", "import slipstream", "floors"),
    ("slipstream/__init__.py", "import torch", "torch is for those who hold tensors"),
    ("stages/batch.py", "import megatron", "megatron is confined"),
    ("stages/batch.py", "import sglang", "sglang is confined"),
    ("stages/engine/spec.py", "import sglang", "sglang is confined"),
    ("stages/filter.py", "import buffers.schema", "floors"),
    ("stages/filter.py", "import stages.reward.scorers", "no stage knows another stage"),
    (
        "stages/learn/losses.py",
        "import stages.learn.megatron.learner",
        "the learner is one of two backends",
    ),
    ("stages/learn/fsdp/learner.py", "import megatron", "megatron is confined"),
]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("house")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    answer = lint(copy)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return copy


@pytest.mark.parametrize(
    ("file", "line", "contract"), PLANTED, ids=lambda v: v if "import" in str(v) else None
)
def test_a_forbidden_import_is_refused(house: Path, file: str, line: str, contract: str) -> None:
    planted = house / file
    text = planted.read_text()
    try:
        planted.write_text(f"{text}\n{line}\n")
        answer = lint(house)
    finally:
        planted.write_text(text)
    assert answer.returncode != 0
    broken = [
        said
        for said in answer.stdout.splitlines()
        if said.endswith("BROKEN") or " BROKEN (" in said
    ]
    assert any(contract in said for said in broken), answer.stdout


@pytest.mark.parametrize(
    "file",
    ["pipeline/stray.py", "pipeline/stray/__init__.py", "stages/stray.py", "configs/stray.py"],
)
def test_a_folder_without_a_floor_is_refused(house: Path, file: str) -> None:
    stray = house / file
    stray.parent.mkdir(exist_ok=True)
    try:
        stray.write_text("")
        answer = lint(house)
    finally:
        stray.unlink()
    assert answer.returncode != 0
    assert "stray" in answer.stdout


def test_the_entry_stands_on_the_roof() -> None:
    imported = {
        node.module
        for node in ast.walk(ast.parse((ROOT / "train_async.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module
    }
    ours = {name for name in imported if name.split(".")[0] in FOLDERS}
    assert ours == {
        "configs.command_line.entry",
        "pipeline.wiring",
        "pipeline.run.runner",
    }  # the last for its annotation only
