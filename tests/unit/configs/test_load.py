"""Flags, presets and families: what a command line becomes, and what a wrong one says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from configs.command_line.families import FamilyFlag
from configs.command_line.loader import load_config, parse_config
from configs.flags import own_flags
from configs.schema import SECTIONS, Config, flat_args
from pipeline.core.errors import ConfigError
from pipeline.wiring import FAMILIES

ROOT = Path(__file__).resolve().parents[3]


class FakeFamily:
    """A library with three flags; counts how often its sources are read."""

    def __init__(self, section: str, title: str, installed: bool = True) -> None:
        self.section, self.title, self.installed, self.reads = section, title, installed, 0

    def names(self) -> Collection[str]:
        self.reads += 1
        if not self.installed:
            raise ConfigError(f"{self.title} is not installed")
        return ("clip_grad", "tp_size", "server_concurrency")

    def flags(self) -> Iterable[FamilyFlag]:
        return [FamilyFlag(name=n, expects="a number") for n in self.names()]

    def parse(self, name: str, values: Sequence[str]) -> tuple[str, Any]:
        try:
            (value,) = map(float, values)
            return name, value
        except ValueError:
            raise ValueError("expected a number") from None

    def problems(self, config: Config) -> Iterator[str]:
        if config.megatron.get("clip_grad") == 13:
            yield "--clip-grad 13.0: expected luck"


def parse(*words: str, families: Sequence[FakeFamily] = ()) -> Config:
    return parse_config(words, families)[0]


def complaint(*words: str, families: Sequence[FakeFamily] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(words, families)
    return str(caught.value)


@pytest.fixture
def preset(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str, name: str = "fast.yaml") -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_without_flags_every_default_of_the_schema_holds() -> None:
    assert parse() == Config()


def test_every_field_is_a_flag_with_help() -> None:
    flags = own_flags()
    fields = [f.name for s in SECTIONS for f in dataclasses.fields(getattr(Config(), s))]
    assert [flag.field for flag in flags.values()] == fields
    assert not [name for name, flag in flags.items() if not flag.help]


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--rollout-batch-size", "3"], "rollout_batch_size", 3),
        (["--rollout-batch-size=3"], "rollout_batch_size", 3),
        (["--rollout-batch-size", "3", "--rollout-batch-size", "3"], "rollout_batch_size", 3),
        (["--rollout-top-k", "-1"], "rollout_top_k", -1),
        (["--sft-lr", "2e-4"], "sft_lr", 2e-4),
        (["--use-tis"], "use_tis", True),
        (["--no-use-tis"], "use_tis", False),
        (["--use-tis", "false"], "use_tis", False),
        (["--disable-grpo-std-normalization"], "grpo_std_normalization", False),
        (["--no-rollout-shuffle"], "rollout_shuffle", False),
        (["--tis-threshold", "3"], "tis_clip", 3.0),
        (["--rollout-stop", "</s>", "a b"], "rollout_stop", ("</s>", "a b")),
        (["--rollout-stop=--end"], "rollout_stop", ("--end",)),
        (["--rollout-stop", ""], "rollout_stop", ()),
        (["--rollout-stop-token-ids", "1", "2"], "rollout_stop_token_ids", (1, 2)),
        (["--system-prompt", "a=b"], "system_prompt", "a=b"),
        (["--max-staleness", "none"], "max_staleness", None),
        (["--log-level", "debug"], "log_level", "debug"),
    ],
)
def test_words_become_values(words: list[str], field: str, value: Any) -> None:
    got = getattr(flat_args(parse(*words)), field)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["--rollout-bach-size", "3"],
            ["--rollout-bach-size", "did you mean --rollout-batch-size"],
        ),
        (["--rollout_batch_size", "3"], ["did you mean --rollout-batch-size?"]),
        (["--no-use-tsi"], ["did you mean --no-use-tis"]),
        (["--tis-treshold", "3"], ["--tis-threshold"]),
        (["--xyzzy"], ["unknown flag --xyzzy", "--help"]),
        (["--rollout-batch-size", "eight"], ["--rollout-batch-size eight", "an integer"]),
        (["--rollout-batch-size", "8.5"], ["--rollout-batch-size 8.5", "an integer"]),
        (["--rollout-batch-size"], ["--rollout-batch-size", "has no value", "an integer"]),
        (["--rollout-batch-size", "none"], ["an integer"]),
        (["--seed", "1", "2"], ["--seed 1 2", "takes one value"]),
        (["--seed", "1", "-lr", "3"], ["--lr"]),
        (["--eps-clip", "nan"], ["--eps-clip nan", "finite"]),
        (["--eps-clip", "small"], ["--eps-clip small", "a number"]),
        (["--use-tis", "maybe"], ["--use-tis maybe", "--no-use-tis"]),
        (["--no-use-tis", "1"], ["--no-use-tis 1"]),
        (["--no-seed"], ["unknown flag --no-seed"]),
        (["--rm-type", "maths"], ["--rm-type maths", "math, boxed_math, deepscaler"]),
        (["--max-staleness", "many"], ["an integer, or none"]),
        (["--rollout-stop-token-ids", "1", "x"], ["--rollout-stop-token-ids 1 x", "integer"]),
        (["--rollout-stop"], ["has no value"]),
        (["train", "--mock"], ["'train'"]),
        (["--config"], ["--config", "YAML"]),
    ],
)
def test_a_wrong_flag_is_named_with_its_value_and_what_was_expected(
    words: list[str], parts: list[str]
) -> None:
    message = complaint(*words)
    assert [p for p in parts if p not in message] == [], message
    assert "\n" not in message


def test_presets_come_first_in_order_and_the_command_line_wins(preset: Callable[..., str]) -> None:
    one = preset(
        "# comment\n- --seed 1\n- --max-turns 2  # why\n- --num-rollout 3\n- --use-tis\n-"
        " --rollout-stop 'a b' \"c\"\n"
    )
    two = preset("- --max-turns 20\n- --num-rollout 30\n", "two.yaml")
    config = parse("--num-rollout", "300", "--no-use-tis", "--config", one, "--config", two)
    assert (config.run.seed, config.rollout.max_turns, config.run.num_rollout) == (1, 20, 300)
    assert config.rollout.rollout_stop == ("a b", "c")
    assert not config.algorithm.use_tis
    assert config == parse("--num-rollout", "300", "--no-use-tis", "--config", one, two)


def test_a_flag_that_may_repeat_adds_up_where_it_is_given_and_still_wins_over_a_preset(
    preset: Callable[..., str],
) -> None:
    path = preset("- --eval-prompt-data a A.jsonl\n- --eval-prompt-data b B.jsonl\n")
    config, _ = parse_config(["--config", path])
    assert config.eval.eval_prompt_data == ("a", "A.jsonl", "b", "B.jsonl")
    typed = ["--eval-prompt-data", "c", "C.jsonl", "--eval-prompt-data", "d", "D.jsonl"]
    config, _ = parse_config(["--config", path, *typed])
    assert config.eval.eval_prompt_data == ("c", "C.jsonl", "d", "D.jsonl")


def test_a_run_is_named_after_its_last_preset_unless_it_has_a_name(
    preset: Callable[..., str],
) -> None:
    one, resolved = preset("- --seed 1", "small.yaml"), preset("- --seed 1", "config.yaml")
    assert parse("--config", one).run.name == "small"
    assert parse("--config", one, "--name", "mine").run.name == "mine"
    assert parse("--config", resolved).run.name is None


def test_an_empty_preset_changes_nothing(preset: Callable[..., str]) -> None:
    path = preset("# nothing yet\n", "config.yaml")
    assert parse("--config", path) == Config()


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("- --seed 1\n- --rollout-batch-size eight\n", 2, "an integer"),
        ("- --seed 1\n\n- --bach-size 3\n", 3, "unknown flag --bach-size"),
        ("- --seed 1\n- seed: 3\n", 2, "expected a flag with its values"),
        ("- --seed 1\n- seed 3\n", 2, "'seed 3'"),
        ("seed: 3\n", 1, "a list of flags"),
        ("- --seed 1\n- [1, 2\n", 3, "not YAML"),
        ("- --system-prompt it's\n", 1, "quot"),
        ("- --seed 1\n- --config other.yaml\n", 2, "command line"),
        ("- --seed 1 --num-rollout 3\n", 1, "takes one value"),
        ("- --seed 1\n- ''\n", 2, "--flag"),
    ],
)
def test_a_malformed_preset_is_named_with_its_line(
    preset: Callable[..., str], text: str, line: int, part: str
) -> None:
    path = preset(text)
    message = complaint("--config", path)
    assert f"{path} line {line}" in message
    assert part in message


def test_a_missing_preset_names_those_beside_it(preset: Callable[..., str]) -> None:
    path = Path(preset("- --seed 1"))
    message = complaint("--config", str(path.with_name("fats.yaml")))
    assert "fats.yaml" in message
    assert "fast.yaml" in message


@pytest.mark.parametrize("name", ["quickstart", "sft", "smollm2"])
def test_a_preset_of_ours_and_its_files_are_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(["--config", name], FAMILIES)  # checks that every file is there
    assert config == dataclasses.replace(
        load_config(["--config", f"configs/presets/{name}.yaml"], FAMILIES), run=config.run
    )
    assert config.run.name == name


@pytest.mark.parametrize(
    ("words", "place", "hint"),
    [
        (["--config", "quikstart"], None, "did you mean quickstart?"),
        (["--config", "zebra"], None, "Slipstream's own are colours, quickstart, sft, smollm2"),
        (["--config", "configs/presets/no.yaml"], "configs/presets/no.yaml", "quickstart.yaml"),
        (
            ["--config", "quickstart", "--hf-checkpoint", "tiny:configs/models/no.yaml"],
            "configs/models/no.yaml",
            "configs/models/ has examples",
        ),
        (
            ["--config", "quickstart", "--prompt-data", "configs/presets/no.jsonl"],
            "configs/presets/no.jsonl",
            "",
        ),
        (["--config", "sft", "--custom-rm-path", "examples/no.py"], "examples/no.py", ""),
    ],
)
def test_a_file_of_ours_that_is_not_there_names_both_places(
    words: list[str], place: str | None, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(words, FAMILIES)
    message = str(caught.value)
    assert f"working folder: {tmp_path}" in message
    assert place is None or str(ROOT / place) in message
    assert hint in message


def test_a_preset_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in complaint("--config", str(tmp_path / "model.yaml"))


def test_a_rule_broken_by_a_preset_names_file_and_line(preset: Callable[..., str]) -> None:
    path = preset("- --mock\n- --colocate\n")
    with pytest.raises(ConfigError, match=r"--colocate: .*fast.yaml line 2"):
        load_config(["--config", path, "--async-buffer-size", "2"])
    with pytest.raises(ConfigError) as caught:  # the command line's own flags need no origin
        load_config(["--config", path, "--colocate", "--async-buffer-size", "2"])
    assert "fast.yaml" not in str(caught.value)


def test_families_are_asked_by_prefix_after_ours() -> None:
    sglang, megatron = FakeFamily("sglang", "SGLang"), FakeFamily("megatron", "Megatron")
    config = parse(
        "--sglang-tp-size",
        "2",
        "--clip-grad",
        "1",
        "--sglang-server-concurrency",
        "7",
        "--seed",
        "3",
        families=[megatron, sglang],
    )
    assert config.sglang == {"tp_size": 2.0}
    assert config.megatron == {"clip_grad": 1.0}
    assert config.cluster.sglang_server_concurrency == 7  # ours, though it begins like SGLang's


def test_families_are_not_read_for_flags_of_ours() -> None:
    family = FakeFamily("megatron", "Megatron")
    parse("--seed", "3", "--mock", families=[family])
    complaint("--seed", "x", families=[family])
    assert family.reads == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--sglang-tp-sise", "2"], ["--sglang-tp-size"]),
        (["--clip-gard", "2"], ["--clip-grad"]),
        (["--clip_grad", "2"], ["did you mean --clip-grad?"]),
        (["--clip-grad", "much"], ["--clip-grad much", "a number"]),
        (["--sglang-tp-size"], ["--sglang-tp-size", "a number"]),
        (["--xyzzy"], ["--help-sglang", "--help-megatron"]),
    ],
)
def test_wrong_flags_of_families(words: list[str], parts: list[str]) -> None:
    message = complaint(
        *words, families=[FakeFamily("sglang", "SGLang"), FakeFamily("megatron", "Megatron")]
    )
    assert [p for p in parts if p not in message] == [], message


def test_a_missing_library_is_told_where_its_flags_are_used_and_hides_nothing_else() -> None:
    family = FakeFamily("megatron", "Megatron", installed=False)
    assert "Megatron is not installed" in complaint("--clip-grad", "1", families=[family])
    assert "did you mean --rollout-batch-size" in complaint(
        "--rollout-bach-size", "1", families=[family]
    )
    assert parse("--seed", "3", families=[family]).run.seed == 3


def test_real_families_know_their_flags_without_importing_them() -> None:
    from pipeline.wiring.foreign_flags import FAMILIES

    words = (
        "--sglang-mem-fraction-static 0.5 --sglang-disable-radix-cache --lr 1e-5"
        " --no-sequence-parallel --recompute-granularity full"
    )
    config, _ = parse_config(words.split(), FAMILIES)
    assert config.sglang == {"mem_fraction_static": 0.5, "disable_radix_cache": True}
    assert config.megatron == {
        "lr": 1e-5,
        "sequence_parallel": False,
        "recompute_granularity": "full",
    }


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--sglang-port abc", ["--sglang-port abc", "an integer"]),
        ("--sglang-schedule-policy best", ["--sglang-schedule-policy best", "lpm"]),
        ("--sglang-disable-radix-cache yes", ["--sglang-disable-radix-cache yes", "true or false"]),
        ("--sglang-mem-fraction-sttic 0.5", ["did you mean --sglang-mem-fraction-static"]),
        ("--lr fast", ["--lr fast", "a number"]),
        ("--recompute-granularity half", ["--recompute-granularity half", "full, selective"]),
        ("--tensor-model-paralel-size 2", ["did you mean --tensor-model-parallel-size"]),
        ("--no-sequence-parallel 1", ["--no-sequence-parallel 1"]),
    ],
)
def test_wrong_flags_of_real_families(words: str, parts: list[str]) -> None:
    from pipeline.wiring.foreign_flags import FAMILIES

    with pytest.raises(ConfigError) as caught:
        parse_config(words.split(), FAMILIES)
    assert [p for p in parts if p not in str(caught.value)] == [], caught.value


def test_a_run_is_loaded_from_where_it_saves_once_it_is_there(tmp_path: Path) -> None:
    """Scripts that are started again and again name one folder twice."""
    folder = tmp_path / "checkpoints"
    words = ["--mock", "--load", f"{folder}/", "--save", str(folder)]
    first = load_config(words)
    assert first.run.load is None and first.run.save == str(folder)
    assert f"--load {folder}/ (there is no run yet" in first.notes[0]
    folder.mkdir()
    assert load_config(words).run.load is None
    (folder / "state.json").touch()
    with pytest.raises(ConfigError, match=r"--load .*neither a run nor a checkpoint"):
        load_config(words)
    with pytest.raises(ConfigError, match=r"--load .*no such folder"):
        load_config(["--mock", "--load", str(tmp_path / "other"), "--save", str(folder)])
    model = ["--mock", "--load", str(folder), "--hf-checkpoint", str(folder)]
    assert load_config(model).run.load is None


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("--rollout-batch-size 3", "--rollout-batch-size 5"),
        ("--use-tis", "--no-use-tis"),
        ("--tis-clip 2", "--tis-threshold 3"),
        ("--rollout-stop a", "--rollout-stop b"),
        ("--max-staleness 3", "--max-staleness none"),
        ("--sglang-page-size 1", "--sglang-page-size 2"),
    ],
)
def test_two_values_of_a_flag_are_refused(
    preset: Callable[[str], str], first: str, then: str
) -> None:
    """On the command line, and within a preset; the one wins over the other, and equal values are
    no question."""
    said = f"{first} and {then}: a flag counts once"
    with pytest.raises(ConfigError, match=said):
        parse_config([*first.split(), *then.split()], FAMILIES)
    with pytest.raises(ConfigError, match=f"{said}.*fast.yaml line 2"):
        parse_config(["--config", preset(f"- {first}\n- {then}\n")], FAMILIES)
    wins, _ = parse_config(["--config", preset(f"- {first}\n"), *then.split()], FAMILIES)
    twice, _ = parse_config([*then.split(), *then.split()], FAMILIES)
    assert dataclasses.replace(wins, run=twice.run) == twice


def test_of_two_values_of_megatrons_the_last_counts_and_that_is_said() -> None:
    """Launch scripts override flags of their model's script so."""
    config, _ = parse_config(["--rotary-base", "10000", "--rotary-base", "1000000"], FAMILIES)
    assert config.megatron["rotary_base"] == 1000000
    (note,) = config.notes
    assert "the last counts: --rotary-base 1000000, not --rotary-base 10000" in note
