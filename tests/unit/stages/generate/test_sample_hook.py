"""--rollout-sample-hook-path: shown every generated sample before it is scored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema import RolloutConfig
from pipeline.core.types import Sample, Status
from stages.engine.mock import MockTokenizer
from stages.generate.generate import GenerateStage
from tests.unit.fake_engine import FakeEngineClient, sample

FUNCTIONS = """
import copy
import sys

def notes(args, sample, **kwargs):
    sample.metadata["seen"] = kwargs

async def replaces(args, sample, *, evaluation):
    other = copy.deepcopy(sample)
    other.metadata["evaluation"] = evaluation
    return other

def answers(args, sample):
    return "good"

def leaves(args, sample):
    sys.exit(1)

def breaks(args, sample):
    sample.loss_mask = [1]
"""


async def made(folder: Path, *names: str, evaluation: bool = False) -> tuple[Sample, Sample]:
    """What was given, and what came out."""
    file = folder / "hooks.py"
    file.write_text(FUNCTIONS)
    config = RolloutConfig(rollout_sample_hook_path=tuple(f"{file}:{name}" for name in names))
    args: Any = SimpleNamespace(**{name: getattr(config, name) for name in config.__slots__})
    stage = GenerateStage(FakeEngineClient("four"), MockTokenizer(), config, args)
    given = sample("2+2=", tokens=[])
    (out,) = await stage([given], evaluation=evaluation)
    return given, out


@pytest.mark.parametrize("evaluation", [False, True])
async def test_hooks_are_called_in_order_sync_or_async(tmp_path: Path, evaluation: bool) -> None:
    given, out = await made(tmp_path, "notes", "replaces", evaluation=evaluation)
    assert out.status is Status.COMPLETED, out.error
    assert out.metadata == {
        "seen": {"rollout_id": None, "evaluation": evaluation},
        "evaluation": evaluation,
    }
    assert given.metadata == {}  # the prompt may be generated again


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("answers", "returned 'good': expected a Sample, or None"),
        ("leaves", "SystemExit: 1 (--rollout-sample-hook-path, "),
        ("breaks", "loss_mask has 1 entries"),
    ],
)
async def test_what_a_hook_breaks_is_that_samples_failure(
    tmp_path: Path, name: str, why: str
) -> None:
    _, out = await made(tmp_path, name)
    assert out.status is Status.FAILED and why in (out.error or "")
