"""The resolved configuration reads back as the same configuration."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.command_line.consequences import draw_consequences
from configs.command_line.dump import changed_flags, dump_config
from configs.command_line.loader import parse_config
from configs.command_line.spellings.reading import Reading
from configs.flags import Flag, own_flags, section_classes
from configs.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES

# Anything but what a command line cannot hold (NUL, lone surrogates) and the word that means
# "unset".
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
).filter(lambda t: t.lower() != "none")
NUMBERS = {
    int: st.integers(-(1 << 40), 1 << 40),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    str: TEXT,
}
MEGATRON = {
    "lr": 3e-6,
    "sequence_parallel": False,
    "cp_comm_type": ["p2p", "a2a"],
    "recompute_granularity": "full",
    "no_rope_freq": [1, 0],
}
SGLANG = {
    "port": 3,
    "disable_radix_cache": True,
    "skip_server_warmup": False,
    "lora_paths": ["a=b", "c d"],
    "json_model_override_args": '{"a": 1}',
}


def values_of(flag: Flag) -> st.SearchStrategy[Any]:
    one = st.sampled_from(flag.choices) if flag.choices else NUMBERS[flag.kind]
    if flag.many:
        return st.lists(one, max_size=3).map(tuple)
    return st.none() | one if flag.optional else one


@st.composite
def configs(draw: st.DrawFn) -> Config:
    # No part of what a run writes down: --load names the run whose flags are read, --num-epoch has
    # become --num-rollout, and a password is not told. --custom-config-path names a file that
    # must be there.
    flags = [
        flag
        for flag in own_flags().values()
        if flag.field not in ("load", "num_epoch", "custom_config_path") and not flag.secret
    ]
    chosen = draw(st.sets(st.sampled_from([f.name for f in flags]), max_size=12))
    sections: dict[str, Any] = {section: {} for section in section_classes()}
    for flag in flags:
        # of two that exclude each other only one is written down
        if flag.name in chosen and not (
            flag.field == "eval_prompt_data" and "eval-config" in chosen
        ):
            sections[flag.section][flag.field] = draw(values_of(flag))
    parts: dict[str, Any] = {
        section: cls(**sections[section]) for section, cls in section_classes().items()
    }
    # what a run writes down is resolved: nothing more follows from it
    return draw_consequences(Config(**parts), {}, Reading())


def reread(config: Config) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        return parse_config(["--config", str(path)], FAMILIES)[0]


@settings(max_examples=150)
@given(configs())
def test_any_configuration_survives(config: Config) -> None:
    assert reread(config) == config


def test_the_families_survive_with_their_types() -> None:
    config = Config(megatron=MEGATRON, sglang=SGLANG)
    assert reread(config) == config


def test_a_family_unset_survives() -> None:
    config, _ = parse_config(
        ["--recompute-granularity", "none", "--sglang-dtype", "none"], FAMILIES
    )
    assert config.megatron == {"recompute_granularity": None}
    assert reread(config) == config


def test_it_is_a_plain_list_of_flags_with_every_default() -> None:
    items = yaml.safe_load(dump_config(Config()))
    assert all(isinstance(item, str) and item.startswith("--") for item in items)
    said = {item.split()[0].removeprefix("--").removeprefix("no-") for item in items}
    assert said == {name for name, flag in own_flags().items() if flag.default not in (None, ())}


def test_load_restores_the_runs_flags_but_its_name(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    flags = ["--lr", "2e-5", "--seed", "5", "--no-save-optim", "--name", "a", "--runs-dir", "x"]
    (run / "config.yaml").write_text(dump_config(parse_config([*flags, "--mock"], FAMILIES)[0]))
    config, origins = parse_config(["--load", str(run), "--seed", "6"], FAMILIES)
    assert (config.run.seed, config.run.save_optim, config.run.mock) == (6, False, True)
    assert config.megatron["lr"] == 2e-5 and str(run / "config.yaml") in origins["lr"]
    assert (config.run.name, config.run.runs_dir) == (None, "runs")
    # a preset of this command line goes over what the run had; its name is not the run's
    preset = tmp_path / "mine.yaml"
    preset.write_text("- --seed 8\n")
    config, _ = parse_config(["--config", str(preset), "--load", str(run)], FAMILIES)
    assert (config.run.seed, config.run.name) == (8, None)


@pytest.mark.parametrize(("place", "says"), [("nowhere", "no such folder"), (".", "neither a run")])
def test_a_load_of_nothing_is_the_first_that_is_said(tmp_path: Path, place: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"--load {tmp_path / place}: {says}"):
        parse_config(["--load", str(tmp_path / place), "--lr", "nonsense"], FAMILIES)


def test_changed_flags_are_named() -> None:
    def text(*flags: str) -> str:
        return dump_config(parse_config(flags, FAMILIES)[0])

    before = text("--lr", "1e-5", "--seed", "5", "--name", "a")
    after = text("--lr", "2e-5", "--seed", "5", "--no-save-optim", "--wandb-group", "g x")
    assert sorted(changed_flags(before, after, but=["name"])) == [
        "--lr 2e-05 (was --lr 1e-05)",
        "--no-save-optim (was --save-optim)",
        "--wandb-group 'g x' (was unset)",
    ]
    assert changed_flags(before, before) == []
