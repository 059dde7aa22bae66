"""The short version of benchmarks/off_policy.py: rollouts that are versions old, corrected, still teach."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import pytest

from benchmarks.common import train
from benchmarks.off_policy import flags

pytestmark = pytest.mark.slow


def test_tis_learns_from_rollouts_that_are_versions_old(warm_quickstart: Path, nothing_left_behind: None) -> None:
    options = argparse.Namespace(staleness=8, lr=0.0007, rollouts=45, steps=1)
    rows = train(*flags("tis", options, warm_quickstart, seed=7))["train"]
    rewards = [r["reward_mean"] for r in rows]
    assert fmean(r["staleness_mean"] for r in rows) > 2 and max(r["staleness_max"] for r in rows) <= 8
    assert fmean(rewards[:5]) < 0.4 and fmean(rewards[-5:]) > 0.5, rewards
