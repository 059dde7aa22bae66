"""Every command that README, docs and docstrings show is run, as it stands where it can be, else
in a form that meets the same parser: none of them can rot."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.flags import later_wins

ROOT = Path(__file__).resolve().parents[3]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
SOURCES = [
    p.relative_to(ROOT)
    for folder in (
        *("examples", "benchmarks", "pipeline", "stages", "buffers", "configs", "compat"),
        "sandbox",
    )
    for p in sorted((ROOT / folder).rglob("*.py"))
]
_START = re.compile(r"^(?:\.venv/bin/)?(?:python[\d.]* |slipstream |train_async\.py |make )")
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
TRAIN = [sys.executable, "train_async.py"]
SHORT = ["--mock", "--num-rollout", "2"]  # what makes any training command one of seconds


class Command(NamedTuple):
    where: str
    words: tuple[str, ...]


def _texts() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        yield page, (ROOT / page).read_text(encoding="utf-8")
    for source in SOURCES:
        doc = ast.get_docstring(ast.parse((ROOT / source).read_text(encoding="utf-8")))
        yield str(source), doc or ""


def commands() -> list[Command]:
    """Indented lines that begin as a command does; a backslash at the end joins the next line."""
    found = []
    for where, text in _texts():
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            stripped = line.strip()
            if line.startswith("    ") and _START.match(stripped):
                words = shlex.split(re.sub(r"\s#.*| &$", "", re.sub(r"[\[\]]", " ", stripped)))
                found.append(Command(where, tuple(words)))
    return sorted(set(found))


def _as_argv(words: tuple[str, ...]) -> list[str]:
    first, rest = Path(words[0]).name, list(words[1:])
    if first.startswith("python"):
        return [sys.executable, *rest]
    if first == "slipstream":
        return [sys.executable, "-m", "pipeline", *rest]
    return [sys.executable, first, *rest]


def _run(argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=180)


def _checked(argv: list[str], cwd: Path) -> None:
    answer = _run(argv, cwd)
    said = f"{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
    assert answer.returncode == 0, f"{' '.join(argv)}\n{said}"


def _kind(command: Command) -> str:
    text = " ".join(command.words)
    if command.words[0] == "make":
        return "make"
    if " -m venv " in text:
        return "venv"
    if "train_async.py" in text or "slipstream train" in text:
        return "train"
    if "-m pipeline" in text or command.words[0] == "slipstream":
        return "tool"
    if "benchmarks" in text or "tests.chaos" in text or "mock_server" in text:
        return "benchmark"
    return "example"


ALL = commands()


def _of(kind: str) -> list[object]:
    return [
        pytest.param(c, id=f"{c.where}: {' '.join(c.words)[:90]}") for c in ALL if _kind(c) == kind
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with what the commands name: the repository's own files, data, model
    folders, recorded runs."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("train_async.py", "examples", "configs"):
        (folder / name).symlink_to(ROOT / name)
    rows = [{"problem": f"{i} + 1", "prompt": f"{i} + 1", "label": f"{i + 1}"} for i in range(40)]
    text = "\n".join(json.dumps({**row, "answer": row["label"]}) for row in rows)
    for name in ("math.jsonl", "mine.jsonl"):
        (folder / name).write_text(text)
    (folder / "length_reward.py").write_text(
        "async def reward_func(args, sample, **kwargs):\n"
        "    return 1.0 if 10 <= sample.response_length <= 40 else 0.0\n"
    )
    (folder / "mine.yaml").write_text("- --async-buffer-size 1\n")
    for model in ("Qwen3-4B", "Qwen3-30B-A3B"):
        (folder / model).mkdir()
        config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], **SHAPE}
        (folder / model / "config.json").write_text(json.dumps(config))
        (folder / model / "tokenizer.json").write_text("{}")
        (folder / model / "model.safetensors").write_bytes(b"")
    ahead = ["--async-buffer-size", "2", "--save-interval", "5", "--keep-trajectories"]
    for name in ("NAME", "first", "crash"):
        _checked([*TRAIN, *SHORT, *ahead, "--name", name], folder)
    _checked([sys.executable, "examples/colours/make_data.py", "colours.jsonl"], folder)
    return folder


def _here(words: list[str]) -> list[str]:
    """The commands' own model folders and presets are those of the working folder."""
    return [
        Path(w).name if w.startswith("/models/") or w == "configs/presets/mine.yaml" else w
        for w in words
    ]


def test_there_are_commands() -> None:
    assert {_kind(c) for c in ALL} >= {"make", "train", "tool", "benchmark", "example"}


@pytest.mark.parametrize("command", _of("make"))
def test_make(command: Command) -> None:
    """The target exists; the other tests are what `make test` runs."""
    answer = subprocess.run(
        ["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("command", _of("train"))
def test_training(command: Command, place: Path) -> None:
    """With simulated engines, two rollouts long, on data of the named columns."""
    argv = [w for w in _here(_as_argv(command.words)) if w not in ("...", "&")]
    loads = "--load-debug-rollout-data"
    if loads in argv and "{rollout_id}" in argv[argv.index(loads) + 1]:
        data = argv[argv.index(loads) + 1]
        _checked([*TRAIN, *SHORT, "--save-debug-rollout-data", data], place)
    _checked(later_wins([*argv, *([] if "--load" in argv else SHORT)]), place)


@pytest.mark.parametrize("command", _of("tool"))
def test_tools(command: Command, place: Path) -> None:
    argv = _as_argv(command.words)
    # on real models, on a job that runs, or until they are interrupted: they have their own tests
    for real in ("convert", "chat", "generate", "pool", "search-server"):
        if real in argv:
            argv = [*argv[: argv.index(real) + 1], "--help"]
    if "show" in argv[:-1]:  # a group is named
        argv[argv.index("show") + 1] = "1"
    _checked(argv, place)


@pytest.mark.parametrize("command", _of("benchmark"))
def test_benchmarks(command: Command) -> None:
    """Each would take minutes to hours: that its parser knows the flags is what is tested."""
    argv = _as_argv(command.words)
    flags = [w for w in argv if w.startswith("--")]
    cut = next((i for i, w in enumerate(argv) if w.startswith("--")), len(argv))
    head = argv[: min(cut, 3 if "-m" in argv else 2)]
    answer = _run([*head, "--help"], ROOT)
    assert answer.returncode == 0, answer.stderr
    assert not [flag for flag in flags if flag not in answer.stdout], answer.stdout


@pytest.mark.parametrize("command", _of("example"))
def test_examples(command: Command, tmp_path: Path) -> None:
    argv = _as_argv(command.words)
    argv = argv[: argv.index(">")] if ">" in argv else argv
    script = ROOT / argv[1]
    assert script.is_file()
    answer = _run([argv[0], str(script), *argv[2:]], tmp_path)
    assert answer.returncode == 0, answer.stderr
