"""SGLang's flags that flags of ours set already: one that says otherwise is refused before an
engine is started on devices that it does not have."""

from __future__ import annotations

import pytest

from configs.command_line.loader import load_config
from configs.rules.cautions import cautions
from pipeline.core.errors import ConfigError
from pipeline.wiring.foreign_flags import FAMILIES

FOUR = "--rollout-num-gpus 8 --rollout-num-gpus-per-engine 4"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            "--sglang-tp-size 2 --rollout-num-gpus-per-engine 1",
            ["--sglang-tp-size 2", "--rollout-num-gpus-per-engine 1", "per-engine 2"],
        ),
        (f"{FOUR} --sglang-tensor-parallel-size 8", ["--sglang-tp-size 8", "per-engine 4"]),
        (f"{FOUR} --sglang-pp-size 2 --sglang-tp-size 4", ["--sglang-tp-size 4", "per-engine 8"]),
        (f"{FOUR} --sglang-pp-size 3", ["--sglang-pp-size 3", "per-engine 6"]),
        (f"{FOUR} --sglang-dp-size 2", ["--sglang-dp-size 2", "--sglang-enable-dp-attention"]),
        (
            f"{FOUR} --sglang-dp-size 3 --sglang-enable-dp-attention",
            ["--sglang-dp-size 3", "per-engine 4", "1, 2, 4"],
        ),
        (f"{FOUR} --sglang-ep-size 8", ["--sglang-ep-size 8", "per-engine 4", "1, 2, 4"]),
        (f"{FOUR} --sglang-port 30000", ["--sglang-port 30000", "2 engines"]),
        ("--sglang-nccl-port 30000", ["--sglang-nccl-port 30000", "Drop it"]),
        ("--sglang-model-path /m", ["--sglang-model-path /m", "--hf-checkpoint"]),
        ("--sglang-random-seed 3", ["--sglang-random-seed 3", "--seed"]),
        ("--sglang-nnodes 2", ["--sglang-nnodes 2", "Ray"]),
        ("--sglang-quantization fp8", ["--sglang-quantization fp8", "as the learner has them"]),
        ("--sglang-base-gpu-id 1", ["--sglang-base-gpu-id 1", "devices"]),
    ],
)
def test_what_flags_of_ours_say_otherwise_is_refused(words: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["--mock", *words.split()], FAMILIES)
    assert [part for part in named if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("words", "tensor"),
    [
        ("--sglang-tp-size 4", 4),
        ("--sglang-pp-size 2", 2),
        ("--sglang-pp-size 2 --sglang-tp-size 2", 2),
        ("--sglang-dp-size 4 --sglang-enable-dp-attention --sglang-ep-size 4", 4),
        ("--sglang-port none", 4),
    ],
)
def test_what_agrees_is_taken(words: str, tensor: int) -> None:
    config = load_config(["--mock", *FOUR.split(), *words.split()], FAMILIES)
    assert config.tensor_ranks_of_an_engine == tensor


def test_colocated_engines_have_the_learners_devices() -> None:
    shared = ["--mock", "--colocate", "--actor-num-gpus-per-node", "8"]
    two = ["--rollout-num-gpus-per-engine", "2"]
    assert load_config([*shared, *two]).num_engines == 4
    assert load_config([*shared, *two, "--actor-num-nodes", "2"]).num_engines == 8
    assert load_config([*shared, *two, "--rollout-num-gpus", "4"]).num_engines == 2
    assert load_config(["--mock", "--actor-num-gpus-per-node", "8"]).num_engines == 1


def test_a_token_budget_wins_over_samples_and_that_is_said() -> None:
    both = load_config(["--mock", "--micro-batch-size", "1", "--use-dynamic-batch-size"])
    assert both.algorithm.samples_of_a_micro_batch is None
    (said,) = cautions(both)
    assert "--micro-batch-size 1 with --use-dynamic-batch-size: the latter wins" in said
    counted = load_config(["--mock", "--micro-batch-size", "2"])
    assert counted.algorithm.samples_of_a_micro_batch == 2 and not list(cautions(counted))


def test_sequences_of_one_tensor_rank_are_not_split() -> None:
    one = load_config(["--mock", "--sequence-parallel"], FAMILIES)
    assert one.megatron["sequence_parallel"] is False and "--sequence-parallel" in one.notes[0]
    split = "--sequence-parallel --tensor-model-parallel-size 2 --actor-num-gpus-per-node 2"
    two = load_config(["--mock", *split.split()], FAMILIES)
    assert two.megatron["sequence_parallel"] is True and not two.notes
