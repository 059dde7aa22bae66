"""--use-sglang-router: what does not go through it is refused before anything starts."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest

from configs.command_line.loader import load_config
from configs.rules import sglang_router as module
from configs.rules.cautions import cautions
from configs.rules.sglang_router import sglang_router
from configs.schema import Config, flat_args
from pipeline.wiring.foreign_flags import FAMILIES

FLAG = "--use-sglang-router"


def problems(monkeypatch: pytest.MonkeyPatch, words: str, *, there: bool = True) -> list[str]:
    """Of a run on real engines; `there`: is the package installed?"""
    found: Any = importlib.util.find_spec("json") if there else None
    monkeypatch.setattr(module, "find_spec", lambda name: found)
    config = load_config(["--mock", FLAG, *words.split()], FAMILIES)
    return list(sglang_router(replace(config, run=replace(config.run, mock=False))))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", None),
        ("--router-policy round_robin", None),
        ("--router-policy power_of_two", "--router-policy power_of_two"),
        ("--use-rollout-routing-replay", "--use-rollout-routing-replay"),
        ("--rollout-external-engine-addrs a:1", "--rollout-external-engine-addrs"),
        ("--num-rollout-workers 2", "--num-rollout-workers 2"),
    ],
)
def test_what_does_not_go_together(
    monkeypatch: pytest.MonkeyPatch, words: str, named: str | None
) -> None:
    found = problems(monkeypatch, words)
    assert len(found) == (named is not None)
    assert all(said.startswith(f"{FLAG} with {named}") for said in found)


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = problems(monkeypatch, "", there=False)
    assert "not installed" in said and "pip install sglang-router==0.3.2" in said


def test_what_a_policy_does_not_do_is_said() -> None:
    def said(words: str, mock: bool = False) -> list[str]:
        config = load_config(["--mock", *words.split()], FAMILIES)
        return list(cautions(replace(config, run=replace(config.run, mock=mock))))

    assert not said("") and not said(FLAG) and not said("--router-policy consistent_hashing")
    assert "token ids" in said(f"{FLAG} --router-policy cache_aware")[0]
    assert "without --use-sglang-router" in said("--router-policy cache_aware")[0]
    assert "does nothing under --mock" in said(FLAG, mock=True)[0]


def test_slimes_functions_read_the_policy() -> None:
    args = flat_args(Config())
    assert args.router_policy == args.sglang_router_policy == "consistent_hashing"
    other = load_config(["--mock", "--sglang-router-policy", "random"], FAMILIES)
    assert flat_args(other).router_policy == "random"
