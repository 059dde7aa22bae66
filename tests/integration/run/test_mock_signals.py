"""A run whose event loop is held by a user's function can be ended all the same."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from pipeline.run.shutdown import SAME_SIGNAL_SECONDS
from tests.conftest import read_until, start_entry

LIMIT_SECONDS = 5.0  # of the second signal, as the documentation says
HOLDS = {
    "sleeps": "time.sleep(600)",
    "computes": "while True: pass",
    "matches": "re.match('(a+)+$', 'a' * 60 + 'b')",
    "waits for a child": "subprocess.run(['sleep', '600'])",
}
SOURCE = """
import re, subprocess, time

async def generate(args, sample, sampling_params):
    print("held", flush=True)
    {}
"""


@pytest.mark.parametrize("holds", HOLDS)
def test_the_second_signal_ends_a_run_whose_loop_is_held(
    tmp_path: Path, nothing_left_behind: None, holds: str
) -> None:
    file = tmp_path / "holds.py"
    file.write_text(SOURCE.format(HOLDS[holds]))
    process = start_entry(
        *("--mock", "--num-rollout", "2", "--runs-dir", str(tmp_path), "--name", "h"),
        *("--custom-generate-function-path", str(file)),
    )
    with process:
        said = read_until(process, lambda line: line == "held\n")
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):  # later than that is another wish
            process.wait(timeout=2 * SAME_SIGNAL_SECONDS)
        process.send_signal(signal.SIGTERM)
        try:
            rest, _ = process.communicate(timeout=LIMIT_SECONDS)
        finally:
            process.kill()
    said += rest
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "SIGTERM: finishing the step under way" in said
    assert "second signal: leaving at once" in said
    if holds != "matches":  # which lets no other thread look
        assert "a function holds the event loop, at " in said
        assert "holds.py:6 (generate)" in said
