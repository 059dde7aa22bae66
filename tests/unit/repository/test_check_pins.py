"""The script that holds the pins against what packages ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from requirements import check_pins
from requirements.check_pins import KNOWN, Misfit, installed, misfits, read_pins

PINS = {"a": "1.0", "b-c": "2.5rc1", "torch": "2.13.0"}


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ("b_C>=2,<3", None),
        ("b.c==2.6", "b.c==2.6: pinned is 2.5rc1"),
        ("gone>=1", "gone>=1: it is not in the list"),
        ("gone>=1; extra == 'more'", None),
        ("gone>=1; sys_platform == 'win32'", None),
        ("nvidia-nccl-cu13", None),  # torch brings it
        ("torch<2", "torch<2: pinned is 2.13.0"),
    ],
)
def test_what_a_package_asks_for_is_held_against_the_pins(asks: str, said: str | None) -> None:
    assert [str(m) for m in misfits(PINS, {"a": [asks]})] == (
        [f"a asks for {said}"] if said else []
    )


def test_on_cpus_not_all_that_is_asked_for_is_there() -> None:
    assert list(misfits(PINS, {"a": ["gone>=1"]}, missing=False)) == []


def test_pins_are_read_for_this_machine(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("# a list\nB_c==1 # why\nd==2; sys_platform == 'win32'\n")
    assert read_pins(tmp_path / "x.txt") == {"b-c": "1"}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_our_own_lists_fit_as_far_as_they_are_installed_here(kind: str) -> None:
    pins = read_pins(check_pins.HERE / "torch.txt", check_pins.HERE / f"{kind}.txt")
    asked = {name: texts for name, texts in installed(pins).items() if name != "torch"}
    found: list[Misfit] = list(misfits(pins, asked, missing=kind == "gpu"))
    assert [str(m) for m in found if m.pair not in KNOWN] == []


def test_transformer_engine_is_what_megatron_core_names() -> None:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    pins = read_pins(check_pins.HERE / "gpu.txt", check_pins.HERE / "transformer_engine.txt")
    named = [Requirement(text) for text in requires("megatron-core") or []]
    (asked,) = [r for r in named if r.name == "transformer-engine"]
    assert asked.specifier.contains(pins["transformer-engine"])
    parts = {pins[f"transformer-engine{part}"] for part in ("", "-cu13", "-torch")}
    assert len(parts) == 1
