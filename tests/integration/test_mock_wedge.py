"""An episode that never returns: with a deadline the run finishes, without one it says who is
awaited."""

from __future__ import annotations

import asyncio
from pathlib import Path

from configs.command_line.loader import load_config
from pipeline.run.watchdog import Silence, Watchdog
from pipeline.wiring import FAMILIES
from pipeline.wiring.assemble import assemble
from tests.conftest import read_metrics, run_entry
from train_async import train

NEVER = """
import asyncio
from stages.generate.session import open_session

async def generate(args, sample, sampling_params):
    if sample.group_index == 3:
        await asyncio.Event().wait()
    async with open_session(args, sample, sampling_params) as session:
        await session.generate()
    return sample
"""
FAST = ("--mock", "--rollout-batch-size", "2", "--n-samples-per-prompt", "2")
FASTER = ("--mock-step-seconds", "0.01", "--mock-seconds-per-token", "0.0001")


def hangs(tmp_path: Path) -> tuple[str, ...]:
    """Flags of a run whose group 3 is never generated."""
    function = tmp_path / "never.py"
    function.write_text(NEVER)
    return (
        *(*FAST, *FASTER, "--num-rollout", "5", "--async-buffer-size", "2"),
        *("--custom-generate-function-path", str(function)),
        *("--runs-dir", str(tmp_path), "--name", "m"),
    )


def test_an_episode_over_its_deadline_is_data_and_the_run_finishes(tmp_path: Path) -> None:
    done = run_entry(*hangs(tmp_path), "--episode-timeout-seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(tmp_path / "m", "train")
    assert len(rows) == 5
    # both samples of the group, twice
    assert rows[-1]["samples_timed_out"] == 4 == rows[-1]["samples_failed"]
    assert "group 3 given up" in done.stderr
    assert "not done after 1 s (--episode-timeout-seconds)" in done.stderr
    assert "never.py:7 (generate)" in done.stderr


class Noted(Watchdog):
    """Tells when it has said that group 3 is awaited."""

    def __init__(self) -> None:
        super().__init__(long_seconds=0.2)
        self.said = asyncio.Event()

    def check(self) -> Silence | None:
        silence = super().check()
        if silence is not None and [a.number for a in silence.awaited[:1]] == [3]:
            self.said.set()
        return silence


async def test_without_a_deadline_the_run_says_who_is_awaited(tmp_path: Path) -> None:
    """Here a silence of a fifth of a second is long; otherwise the run is a user's."""
    watchdog = Noted()
    runner = assemble(
        load_config(hangs(tmp_path), families=FAMILIES), started_at=0.0, watchdog=watchdog
    )
    run = asyncio.create_task(train(runner))
    async with asyncio.timeout(60):
        await watchdog.said.wait()
    run.cancel()
    await asyncio.wait({run})
    row = read_metrics(tmp_path / "m", "wait")[-1]
    assert row["stage"] == "take"
    assert row["num_trained"] == len(read_metrics(tmp_path / "m", "train"))
    assert row["awaited"][0]["stage"] == "generate"
    assert "never.py:7 (generate)" in row["awaited"][0]["where"]
    assert "group 3: generate for " in (tmp_path / "m" / "run.log").read_text()
