"""A disk that fills up while a run writes: one message with the way on, and no work lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import read_metrics, run_entry

MOCK = (
    "--mock",
    *("--rollout-batch-size", "2", "--n-samples-per-prompt", "2", "--mock-length-mean", "4"),
    *("--mock-step-seconds", "0.001", "--num-rollout", "8", "--async-buffer-size", "2"),
    *("--save-interval", "2", "--name", "d"),
)
# From the 20th reward on, what the run has open of a kind is /dev/full: every write fails with
# ENOSPC, as on a full disk. `checkpoint`: opening anything below that folder does.
FILLS = """
import builtins, errno, io, os
calls = 0

async def reward_func(args, sample, **kwargs):
    global calls
    calls += 1
    if calls == 20:
        fill(os.environ["FULL"])
    return 1.0

def fill(what):
    if what == "checkpoints":
        real = io.open
        def refuse(file, *args, **kwargs):
            if "/checkpoints/" in str(file):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            return real(file, *args, **kwargs)
        builtins.open = io.open = refuse
        return
    full = os.open("/dev/full", os.O_RDWR)
    for fd in os.listdir("/proc/self/fd"):
        path = os.readlink(f"/proc/self/fd/{fd}") if os.path.exists(f"/proc/self/fd/{fd}") else ""
        if "/runs/d/" in path and (what == "all" or what in path):
            os.dup2(full, int(fd))
"""


@pytest.mark.parametrize("what", ["journal", "segment", "metrics", "checkpoints", "all"])
def test_a_full_disk_is_said_once_and_the_run_goes_on(
    tmp_path: Path, what: str, nothing_left_behind: None
) -> None:
    (tmp_path / "fills.py").write_text(FILLS)
    runs = tmp_path / "runs"
    flags = [*MOCK, "--runs-dir", str(runs), "--custom-rm-path", str(tmp_path / "fills.py")]
    done = run_entry(*flags, FULL=what)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if "DiskFullError" in x]
    assert f"then go on: --load {runs / 'd'}" in line and "Free at least 64 MiB" in line
    assert len(done.stderr.splitlines()) < 20, done.stderr
    again = run_entry("--load", str(runs / "d"), FULL="nothing")
    assert again.returncode == 0, again.stdout + again.stderr
    assert [r["rollout_id"] for r in read_metrics(runs / "d", "train")] == list(range(8))
