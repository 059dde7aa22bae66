"""A whole run on simulated engines whose environments misbehave: it goes on, and says what
failed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import num_trained, run_entry

ENVIRONMENT = """
import os, random, sys, threading

class Environment:
    def __init__(self, args):
        self.turns = 0
    def reset(self, sample):
        self.number = sample.index
        return "Go."
    def step(self, action):
        self.turns += 1
        kind = self.number % 32 if self.turns == 1 else -1
        if kind == 0:
            raise ValueError("no such move")
        if kind == 4:
            sys.exit(3)
        if kind == 8:
            threading.Event().wait()  # hangs
        if kind == 12:
            os.write(1, b"x" * 100_000_000)
        if kind == 16 and os.fork() == 0:
            os._exit(5)
        if kind == 20:
            return "y" * 100_000_000, 0.0, False
        return "more", random.random(), self.turns > 1
"""


def test_the_run_goes_on_whatever_an_environment_does(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(ENVIRONMENT)
    done = run_entry(
        *("--mock", "--rollout-batch-size", "4", "--n-samples-per-prompt", "4"),
        *("--mock-step-seconds", "0.02", "--mock-seconds-per-token", "0.0005"),
        *("--environment-path", str(mine), "--environment-timeout-seconds", "0.5"),
        *("--rollout-max-response-len", "8192", "--tool-max-output-tokens", "64"),
        *("--group-max-retries", "0", "--num-rollout", "6", "--async-buffer-size", "4"),
        *("--runs-dir", str(tmp_path), "--name", "e"),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert done.stdout.count("x") >= 100_000_000
    run = tmp_path / "e"
    assert num_trained(run) == 6
    log = (run / "run.log").read_text(encoding="utf-8")
    for cause in (
        f"ValueError: no such move (--environment-path, {mine} line 14)",
        "SystemExit: 3 (--environment-path",
        "not done after 0.5 s (--environment-timeout-seconds)",
    ):
        assert cause in log
    said = json.loads((run / "summary.json").read_text())
    assert said["samples_timed_out"] >= 1
    assert said["samples_failed"] >= said["samples_timed_out"] + 2  # those that raised, and left
