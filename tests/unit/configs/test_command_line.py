"""The front door: help, one message, exit codes; and that nothing heavy is imported for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from configs.command_line.entry import parse_or_exit
from configs.flags import ALIASES, NEGATIVES, own_flags
from pipeline.wiring.foreign_flags import FAMILIES
from tests.conftest import ROOT, run_entry

HEAVY = ("torch", "ray", "megatron", "sglang", "transformers", "aiohttp", "tyro", "rich", "pyarrow")


def ended(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as caught:
        parse_or_exit(argv, "train_async.py", FAMILIES)
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_a_good_command_line_returns_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse_or_exit(["--mock", "--num-rollout", "3"], "train_async.py", FAMILIES)
    assert config.run.num_rollout == 3
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag_of_ours_and_where_the_others_are(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    code, out, err = ended(capsys, "--mock", flag)
    assert (code, err) == (0, "")
    words = set(out.replace("[no-]", "").replace(",", " ").replace(")", " ").split())
    assert {
        f"--{n}"
        for n in (*own_flags(), *ALIASES, *NEGATIVES, "config", "help-sglang", "help-megatron")
    } <= words
    assert max(map(len, out.splitlines())) <= 100


def test_help_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = ended(capsys, "--help")
    assert max(map(len, out.splitlines())) <= 80


def test_a_family_is_listed_and_searched(capsys: pytest.CaptureFixture[str]) -> None:
    code, everything, _ = ended(capsys, "--help-megatron")
    assert code == 0
    assert "--tensor-model-parallel-size" in everything
    assert "--adam-beta1" in everything
    _, found, _ = ended(capsys, "--help-megatron", "adam", "eps")
    assert "--adam-eps" in found
    assert "--adam-beta1" not in found
    _, engines, _ = ended(capsys, "--help-sglang", "mem-fraction")
    assert "--sglang-mem-fraction-static" in engines
    _, nothing, _ = ended(capsys, "--help-sglang", "xyzzy")
    assert "no flag of SGLang holds xyzzy" in nothing


@pytest.mark.parametrize(
    "argv",
    [
        ["--nonsense"],
        ["--rollout-batch-size", "eight"],
        ["--mock", "--colocate", "--async-buffer-size", "1"],
        ["--config", "nowhere.yaml"],
        ["--mock", "--lr", "fast"],
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    code, out, err = ended(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("train_async.py: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_the_real_entry_says_the_same() -> None:
    done = run_entry("--mock", "--rollout-bach-size", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "train_async.py: error: unknown flag --rollout-bach-size; did you mean --rollout-batch-size"
    )
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "argv", [["--help"], ["--mock", "--sglang-port", "x"], ["--mock", "--lr", "x"]]
)
def test_neither_help_nor_a_mistake_imports_anything_heavy(argv: list[str]) -> None:
    """What makes them quick, without asking a clock."""
    code = f"""
import runpy, sys
sys.argv = ["train_async.py", *{argv!r}]
try:
    runpy.run_path("train_async.py", run_name="__main__")
except SystemExit as end:
    print(end.code, [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == f"{0 if '--help' in argv else 2} []"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} train_async.py --help-sglang | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["SGLang's flags", "0"]
    assert done.stderr == ""
