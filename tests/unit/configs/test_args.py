"""What users' functions find in `args`."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from pathlib import Path

import pytest

from configs.schema import AlgorithmConfig, Args, Config, flags_of, flat_args
from configs.schema.slime_args import OFF

SLIME_NAMES = Path(__file__).with_name("slime_names.txt").read_text(encoding="utf-8").split()


def test_every_name_of_slimes_has_a_value() -> None:
    assert [name for name in SLIME_NAMES if not hasattr(flat_args(Config()), name)] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("context_parallel_size", 1),
        ("tensor_model_parallel_size", 1),
        ("pipeline_model_parallel_size", 1),
        ("partial_rollout", False),
        ("rollout_global_dataset", True),
        ("dump_details", None),
        ("num_layers", None),
        ("sglang_router_ip", "127.0.0.1"),
        ("global_batch_size", 64),
        ("eps_clip_high", 0.2),
        ("rollout_num_engines", 1),
        ("use_critic", False),
    ],
)
def test_a_name_that_was_not_typed_has_slimes_meaning(name: str, value: object) -> None:
    assert getattr(flat_args(Config()), name) == value


def test_what_has_another_name_here_has_its_value() -> None:
    algorithm = AlgorithmConfig(advantage_estimator="ppo", use_opsm=True)
    args = flat_args(Config(algorithm=algorithm, megatron={"tensor_model_parallel_size": 2}))
    assert args.use_opsm and args.opsm_delta == 1e-4
    assert args.use_critic and args.tensor_model_parallel_size == 2


def test_what_the_run_found_goes_over_flags_and_the_users_settings_over_all() -> None:
    config = Config(
        found={"hf_checkpoint": "/folder", "start_rollout_id": 3}, custom={"start_rollout_id": 4}
    )
    args = flat_args(config)
    assert (args.hf_checkpoint, args.start_rollout_id) == ("/folder", 4)


def test_one_run_cannot_change_the_defaults_of_the_next() -> None:
    flat_args(Config()).eval_datasets.append("B")
    assert OFF["eval_datasets"] == [] == flat_args(Config()).eval_datasets


def test_no_row_of_the_table_is_a_flag_of_ours() -> None:
    assert OFF.keys() & flags_of(Config()).keys() == set()


def test_a_copy_shares_the_runs_live_parts_and_nothing_else() -> None:
    args = Args(**vars(flat_args(Config())), engine_client=threading.Lock(), mine={"a": [1]})
    other = copy.deepcopy(args)
    other.mine["a"].append(2)
    other.rollout_batch_size = 99
    assert other.engine_client is args.engine_client and args.mine == {"a": [1]}
    assert args.rollout_batch_size != 99 and type(other) is Args


def test_args_go_to_other_processes() -> None:
    args = flat_args(dataclasses.replace(Config(), custom={"a": 1}))
    assert vars(pickle.loads(pickle.dumps(args))) == vars(args)


def test_what_is_not_there_is_said_in_one_line_with_what_is() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = flat_args(Config()).context_paralel_size
    said = str(caught.value)
    assert "\n" not in said and said.startswith("args.context_paralel_size is no flag")
    assert "did you mean args.context_parallel_size?" in said and "--custom-config-path" in said
    assert getattr(flat_args(Config()), "nothing_like_it", 3) == 3
