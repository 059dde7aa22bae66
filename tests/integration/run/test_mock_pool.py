"""`python -m pipeline pool` on a job that runs, with simulated engines."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import read_metrics, read_until, run_module, start_entry

FLAGS = (
    *("--mock", "--rollout-num-gpus", "2", "--async-buffer-size", "2"),
    *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--num-rollout", "100000"),
    *("--mock-step-seconds", "0.01", "--mock-seconds-per-token", "0.001"),
)


@contextmanager
def running(folder: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has begun to train; SIGTERM ends it."""
    process = start_entry(*FLAGS, *more, "--runs-dir", str(folder), "--name", "r")
    try:
        read_until(process, lambda line: line.startswith("rollout 3/"))
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def pool(run: Path, *words: str) -> tuple[int, list[list[str]]]:
    done = run_module("pipeline", "pool", str(run), *words)
    return done.returncode, [line.split() for line in (done.stdout + done.stderr).splitlines()]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_engines_come_and_go_and_the_run_goes_on(
    tmp_path: Path, nothing_left_behind: None, workers: int
) -> None:
    run = tmp_path / "r"
    with running(tmp_path, "--num-rollout-workers", str(workers)) as process:
        code, listed = pool(run)
        assert code == 0 and [row[0] for row in listed] == ["engine", "mock://0", "mock://1"]
        code, said = pool(run, "add")
        assert (code, said[-1]) == (0, ["mock://2", "takes", "requests"])
        for gone, now in (("mock://0", []), ("mock://1", ["--now"])):
            code, said = pool(run, "drain", gone, *now)
            assert (code, said[-1]) == (0, [gone, "has", "left"]), said
        code, said = pool(run, "drain", "mock://2")
        assert code == 1 and "last" in said[-1]
        code, said = pool(run, "drain", "mock://7")
        assert code == 1 and "mock://2" in said[-1][-1]
        trained = len(read_metrics(run, "train"))
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("rollout ") and int(line.split()[1].split("/")[0]) > trained + 5:
                break
        assert [row[0] for row in pool(run)[1]] == ["engine", "mock://2"]
    train, events = read_metrics(run, "train"), read_metrics(run, "engine")
    assert [r["rollout_id"] for r in train] == list(range(len(train)))
    assert max(r["staleness_max"] for r in train) <= train[0]["staleness_bound"]
    assert [(r["event"], r["engine"]) for r in events if r["event"] != "stats"] == [
        ("start", "mock://0"),
        ("start", "mock://1"),
        ("start", "mock://2"),
        ("drained", "mock://0"),
        ("drained", "mock://1"),
    ]
    assert {r["num_engines"] for r in events if r["event"] == "stats"} == {1, 2, 3}
    code, said = pool(run)
    assert code == 2 and "no job runs there" in " ".join(said[-1])
    assert not (run / "pool.sock").exists()
