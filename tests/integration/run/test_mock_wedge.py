"""An episode that never returns: with a deadline the run finishes, without one it says who is
awaited."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.command_line.loader import load_config
from pipeline.core.errors import WeightSyncError
from pipeline.core.types import PushResult
from pipeline.run.runner import leaves
from pipeline.run.watchdog import Silence, Watchdog
from pipeline.wiring import FAMILIES
from pipeline.wiring.assemble import assemble
from stages.publish.mock import MockTransport
from tests.conftest import read_metrics, run_entry
from tests.flags import later_wins
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


def at(tmp_path: Path) -> tuple[str, ...]:
    return ("--num-rollout", "5", "--runs-dir", str(tmp_path), "--name", "m")


def never_generates(tmp_path: Path) -> tuple[str, str]:
    """Flags of a run whose group 3 is never generated."""
    function = tmp_path / "never.py"
    function.write_text(NEVER)
    return ("--custom-generate-function-path", str(function))


def test_an_episode_over_its_deadline_is_data_and_the_run_finishes(tmp_path: Path) -> None:
    done = run_entry(
        *(*FAST, *FASTER, *at(tmp_path), *never_generates(tmp_path)),
        *("--async-buffer-size", "2", "--episode-timeout-seconds", "1"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_metrics(tmp_path / "m", "train")
    assert len(rows) == 5
    # both samples of the group, twice
    assert rows[-1]["samples_timed_out"] == 4 == rows[-1]["samples_failed"]
    assert "given up: group 3" in done.stderr
    assert "not done after 1 s (--episode-timeout-seconds)" in done.stderr
    assert "never.py:7 (generate)" in done.stderr


class Noted(Watchdog):
    """Here a silence of a fifth of a second is long. Tells when it has said what is looked for."""

    def __init__(self, is_it: Callable[[Silence], bool]) -> None:
        super().__init__(long_seconds=0.2)
        self._is_it = is_it
        self.said = asyncio.Event()

    def check(self) -> Silence | None:
        silence = super().check()
        if silence is not None and self._is_it(silence):
            self.said.set()
        return silence


async def never(*args: Any, **kwargs: Any) -> None:
    await asyncio.Event().wait()


async def told(
    tmp_path: Path, flags: Sequence[str], stage: str, awaits: str | None
) -> dict[str, Any]:
    """The record of a silence at `stage`, of a run that is ended when it has told of it."""

    def is_it(silence: Silence) -> bool:
        first = [f"{a.kind} {a.number}: {a.stage}" for a in silence.awaited[:1]]
        return silence.stage == stage and first == ([awaits] if awaits else [])

    said = await ended_when_told(tmp_path, flags, is_it)
    assert "nothing was trained for " in said and (awaits or f"'{stage}'") in said
    row = read_metrics(tmp_path / "m", "wait")[-1]
    assert row["stage"] == stage
    return row


async def ended_when_told(
    tmp_path: Path, flags: Sequence[str], is_it: Callable[[Silence], bool]
) -> str:
    """The log of such a run."""
    config = load_config(later_wins([*FAST, *FASTER, *at(tmp_path), *flags]), families=FAMILIES)
    watchdog = Noted(is_it)
    run = asyncio.create_task(train(assemble(config, started_at=0.0, watchdog=watchdog)))
    async with asyncio.timeout(60):
        await watchdog.said.wait()
    run.cancel()
    await asyncio.wait({run})
    return (tmp_path / "m" / "run.log").read_text()


async def test_without_a_deadline_the_run_says_who_is_awaited(tmp_path: Path) -> None:
    flags = ("--async-buffer-size", "2", *never_generates(tmp_path))
    row = await told(tmp_path, flags, "take", "group 3: generate")
    assert row["num_trained"] == len(read_metrics(tmp_path / "m", "train"))
    assert "never.py:7 (generate)" in row["awaited"][0]["where"]


async def test_a_filter_that_keeps_nothing_is_named_with_its_reason(tmp_path: Path) -> None:
    function = tmp_path / "picky.py"
    function.write_text(
        "from slipstream import DynamicFilterOutput\n"
        "def keep(args, samples, **kwargs):\n"
        "    return DynamicFilterOutput(keep=False, reason='dull')\n"
    )
    flags = ("--dynamic-sampling-filter-path", str(function))
    said = await ended_when_told(tmp_path, flags, lambda silence: silence.dropped is not None)
    assert f"by --dynamic-sampling-filter-path {function} (dull: " in said
    row = read_metrics(tmp_path / "m", "wait")[-1]
    (cause,) = row["dropped"]["causes"]
    assert cause["reasons"] == {"dull": row["dropped"]["num_groups"]}
    assert row["stage"] == "take" and row["num_trained"] == 0
    assert row["groups_filtered"] * 2 == row["samples_discarded"] > 0
    summary = json.loads((tmp_path / "m" / "summary.json").read_text())
    assert summary["samples_discarded_before_buffer"] == row["samples_discarded"]


async def test_a_reward_that_does_not_come_is_named(tmp_path: Path) -> None:
    function = tmp_path / "never_scores.py"
    function.write_text(
        "import asyncio\n"
        "async def reward_func(args, sample, **kwargs):\n"
        "    if sample.group_index == 3:\n"
        "        await asyncio.Event().wait()\n"
        "    return 1.0\n"
    )
    row = await told(tmp_path, ("--custom-rm-path", str(function)), "take", "group 3: reward")
    assert "never_scores.py:4 (reward_func)" in row["awaited"][0]["where"]


async def test_an_evaluation_that_does_not_end_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "1 + 1 =", "label": "2"}\n')
    function = tmp_path / "never.py"
    function.write_text(
        NEVER.replace("sampling_params):", "sampling_params, evaluation):").replace(
            "sample.group_index == 3", "evaluation"
        )
    )
    evaluates = ("--eval-prompt-data", "held-out", str(data), "--eval-interval", "2")
    own = (
        "--custom-generate-function-path",
        str(function),
        "--rm-type",
        "exact_match",
        "--label-key",
        "label",
    )
    row = await told(tmp_path, (*evaluates, *own), "evaluations", "evaluation 0: evaluate")
    assert "never.py:7 (generate)" in row["awaited"][0]["where"]
    # the next one said so when its time came
    said = (tmp_path / "m" / "run.log").read_text()
    assert "the evaluation after 2 rollouts has to wait: evaluation 0: evaluate for" in said


@pytest.mark.parametrize(("stage", "method"), [("push", "deliver"), ("close", "close")])
async def test_a_push_and_a_shutdown_say_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, method: str
) -> None:
    monkeypatch.setattr(MockTransport, method, never)
    row = await told(tmp_path, (), stage, None)
    assert "(never)" in row["where"]


async def test_a_push_beside_the_learner_that_does_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MockTransport, "deliver", never)
    row = await told(tmp_path, ("--async-buffer-size", "2"), "push", "push 0: deliver")
    assert row["num_trained"] == 2, "the learner went on, up to the next push"
    assert "(never)" in row["awaited"][0]["where"]


async def test_where_groups_wait_for_a_push_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MockTransport, "deliver", never)
    flags = ("--async-buffer-size", "1", "--update-weights-interval", "2", "--max-staleness", "1")
    row = await told(tmp_path, flags, "take", "push 1: deliver")
    assert row["num_trained"] == 3 == len(read_metrics(tmp_path / "m", "train"))


async def test_a_push_that_fails_beside_the_learner_ends_the_run_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: MockTransport) -> PushResult:
        raise WeightSyncError("mock://0 stays at version 0 after 3 attempts")

    monkeypatch.setattr(MockTransport, "deliver", fails)
    flags = [*FAST, *FASTER, *at(tmp_path), "--async-buffer-size", "2"]
    run = assemble(load_config(later_wins(flags), families=FAMILIES), started_at=0.0)
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(train(run), 60)
    (cause,) = leaves(caught.value)
    assert isinstance(cause, WeightSyncError)
    log = (tmp_path / "m" / "run.log").read_text()
    assert log.count("the run ends with WeightSyncError: mock://0 stays at version 0") == 1
