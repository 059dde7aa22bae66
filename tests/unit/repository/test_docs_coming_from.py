"""The pages for those who come from elsewhere name flags that are there, and defaults as they
are."""

from __future__ import annotations

import re

import pytest

from configs.command_line.families import PREFIXES
from configs.command_line.slime_defaults import SLIMES
from configs.flags import ALIASES, NEGATIVES, own_flags, words_of
from pipeline.wiring.foreign_flags import FAMILIES
from tests.conftest import ROOT
from tests.unit.pipeline.core.test_slime_names import NAMES

SLIME, OTHERS = "coming-from-slime.md", "coming-from-others.md"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def known_flags() -> set[str]:
    own = own_flags()
    families = {
        PREFIXES[family.section] + name.replace("_", "-")
        for family in FAMILIES
        for name in family.names()
    }
    off = {f"no-{name}" for name, flag in own.items() if flag.kind is bool}
    return {*own, *ALIASES, *NEGATIVES, *families, *off, "config"}


@pytest.mark.parametrize("name", [SLIME, OTHERS])
def test_every_flag_is_there(name: str) -> None:
    named = set(re.findall(r"--([a-z][a-z0-9-]+)", page(name)))
    # what a megatron-core of this environment does not list is accepted as another name
    spelt = {"accumulate-allreduce-grads-in-fp32"}
    assert named - known_flags() - spelt == set()


def rows() -> dict[str, tuple[str, str]]:
    """Of the table of defaults: flag -> (slime's, ours)."""
    cells = re.findall(r"^\| `--([\w-]+)`(?:, [^|]*)? \| ([^|]*) \| ([^|]*) \|$", page(SLIME), re.M)
    return {flag: (theirs.replace("`", ""), ours.replace("`", "")) for flag, theirs, ours in cells}


def test_the_table_has_every_default_that_a_run_warns_of() -> None:
    table = rows()
    for flag, theirs in SLIMES.items():
        assert table[flag][0].split(",")[0] == theirs


def test_its_own_defaults_are_the_flags() -> None:
    for name, (_, ours) in rows().items():
        flag = own_flags().get(name)
        if flag is None or flag.default is None:
            continue
        default = flag.default
        word = {True: "on", False: "off"}.get(default) if flag.kind is bool else None
        (first, *_) = re.split(r"[ ,;:(]", ours)
        assert first == (word or " ".join(words_of(default))), name


def test_the_page_of_functions_lists_slimes_names() -> None:
    rows = re.findall(r"^\| `(slime\.[\w.]+)` \| (.*) \|$", page("custom-functions.md"), re.M)
    listed = {module: re.findall(r"`(\w+)`", names) for module, names in rows}
    assert listed == NAMES
