"""The table of other projects' flags: it answers for every name, with flags that exist here, and
never stands in the way of a flag that is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configs.command_line.loader import load_config
from configs.command_line.spellings.entries import Absent, Nothing, Ours
from configs.command_line.spellings.page import page
from configs.command_line.spellings.reading import TABLES
from configs.flags import ALIASES, NEGATIVES, own_flags
from configs.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES
from tests.conftest import ROOT

NAMES = json.loads((Path(__file__).parent / "names.json").read_text())
ENTRIES = [(name, entry) for table in TABLES.values() for name, entry in table.items()]
SGLANG, MEGATRON = FAMILIES


def taken(words: str) -> Config:
    return load_config(["--mock", *words.split()], FAMILIES)


def known() -> set[str]:
    """Every flag that is taken without the table."""
    return {
        *own_flags(),
        *(f"no-{name}" for name, flag in own_flags().items() if flag.kind is bool),
        *ALIASES,
        *NEGATIVES,
        *(f"sglang-{name.replace('_', '-')}" for name in SGLANG.names()),
        *(name.replace("_", "-") for name in MEGATRON.names()),
    }


@pytest.mark.parametrize("project", NAMES)
def test_every_name_is_a_flag_or_in_the_table(project: str) -> None:
    named = {name for table in TABLES.values() for name in table}
    assert sorted(set(NAMES[project]) - known() - named) == []


def test_no_name_is_in_two_tables_and_none_hides_a_flag() -> None:
    names = [name for name, _ in ENTRIES]
    assert len(names) == len(set(names))
    assert not set(names) & known()


def test_what_a_name_is_here_is_a_flag() -> None:
    targets = {entry.to.split()[0] for _, entry in ENTRIES if isinstance(entry, Ours)}
    assert targets <= known()


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES if isinstance(entry, Absent)])
def test_what_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        taken(f"--{name}")
    said = str(caught.value)
    assert said.startswith(f"--{name}: ") and "\n" not in said and "did you mean" not in said


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES if isinstance(entry, Nothing)])
def test_what_asks_for_nothing_is_accepted_and_said(name: str) -> None:
    entry = next(entry for n, entry in ENTRIES if n == name)
    assert isinstance(entry, Nothing)
    words = f"--{name} {entry.only[0]}" if entry.only else f"--{name}"
    note, *_ = taken(words).notes
    assert words in note and entry.why in note


def test_a_value_that_is_not_so_here_is_refused() -> None:
    for words in ("--tokenizer-type SentencePieceTokenizer", "--update-weight-mode delta"):
        with pytest.raises(ConfigError, match=f"^{words}: "):
            taken(words)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--accumulate-allreduce-grads-in-fp32", "grad_reduce_in_fp32", True),
        ("--decoder-first-pipeline-num-layers 2", "num_layers_in_first_pipeline_stage", 2),
        ("--decoder-last-pipeline-num-layers 3", "num_layers_in_last_pipeline_stage", 3),
        ("--apply-layernorm-1p", "layernorm_zero_centered_gamma", True),
        ("--use-gated-attention", "attention_output_gate", True),
        ("--use-flash-attn", "attention_backend", "flash"),
        ("--no-check-for-nan-in-loss-and-grad", "check_for_nan_in_grad", False),
    ],
)
def test_megatrons_other_words_for_a_field(words: str, field: str, value: object) -> None:
    config = taken(words)
    assert config.megatron[field] == value


def test_slimes_words_for_flags_of_ours() -> None:
    config = taken("--balance-by-flops --tp-size 1 --update-weight-transport disk")
    assert config.megatron["tensor_model_parallel_size"] == 1
    assert config.cluster.weight_transport == "disk"
    assert taken("--update-weight-transport nccl").cluster.weight_transport == "distributed"
    delta = taken("--weight-transport delta --update-weight-local-checkpoint-dir /nvme/weights")
    assert delta.cluster.update_weight_local_checkpoint_dir == "/nvme/weights"


def test_a_wrong_value_is_told_in_both_words() -> None:
    with pytest.raises(ConfigError, match="--weight-transport") as caught:
        taken("--update-weight-transport mpi")
    assert "--update-weight-transport mpi" in str(caught.value)
    with pytest.raises(ConfigError, match="--rollout-health-check-first-wait x: expected a number"):
        taken("--rollout-health-check-first-wait x")


def test_what_asks_for_nothing_is_one_line() -> None:
    config = taken(
        "--no-position-embedding --tokenizer-type HuggingFaceTokenizer --seq-length 4096"
    )
    (note,) = config.notes
    for flag in ("--no-position-embedding", "--tokenizer-type", "--seq-length 4096"):
        assert flag in note
    assert load_config(["--mock"], FAMILIES).notes == ()


def test_the_page_is_what_the_tables_say() -> None:
    """`python -m configs.command_line.spellings.page > docs/slime-flags.md` makes it again."""
    assert (ROOT / "docs/slime-flags.md").read_text(encoding="utf-8") == page()


def test_a_prefix_answers_for_what_is_not_named() -> None:
    config = taken("--router-log-level info --router-cb-timeout-duration-secs 5")
    assert all(flag in config.notes[0] for flag in ("--router-log-level", "--router-cb-timeout"))
    assert taken("--router-request-timeout-secs 30").rollout.generate_timeout_seconds == 30
    with pytest.raises(ConfigError, match=r"^--router-prometheus-port 9000: the router is"):
        taken("--router-prometheus-port 9000")
