"""docs/performance.md: every flag in it exists, with the default that it states, and every field is
one that a row can have."""

from __future__ import annotations

import re
from pathlib import Path

from configs.flags import own_flags, words_of
from stages.engine.server_args import server_arg
from stages.learn.megatron.arguments import megatron_flags

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "performance.md").read_text(encoding="utf-8")


def test_every_flag_exists() -> None:
    names = set(re.findall(r"--([a-z][a-z0-9-]+)", TEXT))
    assert len(names) > 20
    for name in names:
        if name.startswith("sglang-") and name != "sglang-server-concurrency":
            server_arg(name.removeprefix("sglang-"))
        else:
            known = own_flags().keys() | {flag.replace("_", "-") for flag in megatron_flags()}
            assert name in known or name.removeprefix("no-") in own_flags(), name


def test_defaults_are_the_flags() -> None:
    stated = re.findall(r"`--([a-z-]+)` \[([^\]]+)\]", TEXT)
    assert len(stated) >= 3
    for name, value in stated:
        assert words_of(own_flags()[name].default) == [value], name


def test_files_exist() -> None:
    root = Path(__file__).resolve().parents[3]
    for name in re.findall(r"`((?:benchmarks|pipeline|stages)/[\w/]+\.py)`", TEXT):
        assert (root / name).is_file(), name
