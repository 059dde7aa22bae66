"""docs/algorithms.md has every estimator, loss, KL and correction, with the defaults that the flags
have."""

from __future__ import annotations

import math
import re
import typing

import pytest

from configs.corrections import PRESETS
from configs.flags import own_flags
from configs.schema import AlgorithmConfig, Estimator
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "algorithms.md").read_text()
ROWS = {
    cells[1].strip().strip("`"): [c.strip() for c in cells[1:-1]]
    for line in PAGE.splitlines()
    if len(cells := line.split("|")) > 3
}
# how a rollout is cut, not what is learnt from it
CUT = ("global-batch-size", "num-steps-per-rollout")
_MORE = "".join((ROOT / "docs" / name).read_text() for name in ("performance.md", "moe.md"))
ELSEWHERE = {*CUT, *re.findall(r"--(?:no-)?([a-z-]+)", _MORE)} - {"true-on-policy-mode"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_correction_has_its_bounds(name: str) -> None:
    correction, said = PRESETS[name].correction, ROWS[name][-1]
    bounded = correction.rejections[0] if correction.rejections else correction.weight
    found = (bounded.low, bounded.high) if bounded else (0.0, correction.clip_budget or 0.0)
    assert [_number(b) for b in said.split(",") if b.strip()] == pytest.approx(
        [b for b in found if 0 < b < math.inf]
    )


def _number(text: str) -> float:
    power = re.fullmatch(r"exp\((.*)\)", text.strip())
    return math.exp(float(power[1])) if power else float(text)


def test_every_estimator_and_flag_is_there() -> None:
    assert [name for name in typing.get_args(Estimator) if name not in ROWS] == []
    flags = [
        f.name for f in own_flags().values() if f.section == "algorithm" and f.name not in ELSEWHERE
    ]
    functions = (ROOT / "docs" / "custom-functions.md").read_text()
    missing = [
        f for f in flags if f"--{f}" not in PAGE + functions and f"--disable-{f}" not in PAGE
    ]
    assert missing == []


def test_defaults() -> None:
    a = AlgorithmConfig()
    assert (
        f"`--eps-clip` {a.eps_clip:g}," in PAGE
        and f"[{a.kl_loss_type}]" in PAGE
        and f"`--gamma` [{a.gamma:g}]" in PAGE
    )
    assert f"`--advantage-estimator` [{a.advantage_estimator}]" in PAGE
    assert f"off; {a.tis_clip_low:g}, {a.tis_clip:g}; {a.tis_level}; {a.tis_mode}" in PAGE
