"""A run that is submitted to a Ray cluster as a job, as in slime's documents: `ray start`, then
`ray job submit`."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from pipeline.core.ports import free_port
from tests.conftest import ROOT, read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.alone]
RAY = str(Path(sys.executable).with_name("ray"))
UP_SECONDS = 120.0
JOB_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Head:
    """`ray start --head` on this machine."""

    dashboard: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]

    def submit(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, "job", "submit", "--address", self.dashboard, "--", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=JOB_SECONDS,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ssjob-"))
    port = free_port()
    dashboard = free_port([port])
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--num-gpus=0"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
            f"--object-store-memory={128 << 20}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _answers(url, process)
        yield Head(url, environment, process)
    finally:
        ours = [process, *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for one in ours:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                one.kill()
        process.wait()
        for _ in range(50):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
            time.sleep(0.1)


def _answers(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when the dashboard takes jobs."""
    until = time.monotonic() + UP_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, "ray start ended"
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError:  # it answers, and asks for the token
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"{url} gave no answer")


def test_a_submitted_job_trains_on_the_cluster_that_it_was_submitted_to(
    head: Head, tmp_path: Path
) -> None:
    done = head.submit(
        sys.executable,
        str(ROOT / "train_async.py"),
        *("--config", "quickstart", "--sft-steps", "2", "--num-rollout", "2"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--eval-interval", "0"),
        *("--runs-dir", str(tmp_path), "--name", "job"),
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert len(read_metrics(tmp_path / "job", "train")) == 2
    log = (tmp_path / "job" / "logs" / "engine-0.log").read_text()
    assert "--host 127.0.0.1" in log.splitlines()[0], "one node: nothing listens elsewhere"


def test_a_job_that_does_not_fit_is_refused_with_what_there_is(head: Head, tmp_path: Path) -> None:
    done = head.submit(
        sys.executable,
        str(ROOT / "train_async.py"),
        *("--config", "quickstart", "--num-rollout", "2", "--rollout-num-gpus", "7"),
        *("--runs-dir", str(tmp_path), "--name", "wide"),
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "the run does not fit: 8 devices were asked for" in said
    assert "lower --rollout-num-gpus to 1 or less" in said
