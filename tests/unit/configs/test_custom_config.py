"""--custom-config-path: settings of users' functions, in `args` by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.command_line.loader import parse_config
from configs.schema import Config, flat_args
from pipeline.core.errors import ConfigError
from tests.unit.configs.test_load import FakeFamily


def parse(file: Path, text: str, *words: str) -> Config:
    file.write_text(text, encoding="utf-8")
    families = [FakeFamily("sglang", "SGLang"), FakeFamily("megatron", "Megatron")]
    return parse_config([*words, "--custom-config-path", str(file)], families)[0]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def test_values_become_attributes_of_args_as_yaml_types_them(file: Path) -> None:
    config = parse(file, "lower: 0.5\nupper: null\nnames: [a, b]\nflag: true\ntable: {a: 1}\n")
    args = flat_args(config)
    assert (args.lower, args.upper, args.names) == (0.5, None, ["a", "b"])
    assert args.table == {"a": 1} and args.flag is True


def test_a_name_that_is_a_flag_means_that_flag(file: Path) -> None:
    config = parse(file, "max_turns: 3\nrollout_stop: [a, b c]\nclip_grad: 0.5\n")
    assert (config.rollout.max_turns, config.rollout.rollout_stop) == (3, ("a", "b c"))
    assert config.megatron == {"clip_grad": 0.5} and config.custom == {}


def test_a_name_of_slimes_with_another_name_here_means_that(file: Path) -> None:
    config = parse(file, "update_weight_transport: disk\nuse_rollout_entropy: true\n")
    assert config.cluster.weight_transport == "disk"
    assert config.custom == {"use_rollout_entropy": True}


def test_it_goes_over_presets_and_may_repeat_the_command_line(file: Path, tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text("- --max-turns 5\n", encoding="utf-8")
    assert parse(file, "max_turns: 3", "--config", str(preset)).rollout.max_turns == 3
    assert parse(file, "max_turns: 3", "--max-turns", "3").rollout.max_turns == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_turns: 3", "max_turns 3 ({} line 1) is the flag --max-turns 3, and the command line"),
        ("a: 1\nmax_turns: x", "--max-turns x: expected an integer ({} line 2)"),
        ("a: 1\nprefill_num_servers: 2", "engines that only prefill are not there"),
        ("a: 1\nmy-own: 1", "{} line 2: 'my-own' is no name as in args.NAME"),
        ("yes: 1", "{} line 1: 'yes' is no name as in args.NAME"),
        ("tokenizer: 1", "{} line 1: args.tokenizer is the run's own; rename it"),
        ("load: runs/x", "{} line 1: load belongs on the command line"),
        ("- a\n- b", "--custom-config-path {}: list found; expected a YAML mapping"),
        ("a: [1", "--custom-config-path {} line 1: not YAML"),
    ],
)
def test_a_mistake_names_file_line_and_key(file: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(file, text, "--max-turns", "5")
    assert said.format(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--custom-config-path .*gone\.yaml: No such file"):
        parse_config(["--custom-config-path", str(tmp_path / "gone.yaml")])


def test_an_empty_file_says_nothing(file: Path) -> None:
    assert parse(file, "# nothing yet\n").custom == {}
