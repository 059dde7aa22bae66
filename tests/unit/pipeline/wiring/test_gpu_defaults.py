"""What a run on GPUs takes where its flags say nothing, beside one on CPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from configs.schema import Config
from pipeline.wiring.deadlines import engine_start_seconds, request_seconds
from pipeline.wiring.engines import labels_late, sglang_options
from pipeline.wiring.learner_settings import learner_settings

Device = Literal["cpu", "cuda"]


def config(section: str, **fields: Any) -> Config:
    return replace(Config(), **{section: replace(getattr(Config(), section), **fields)})


@pytest.mark.parametrize(
    ("device", "given", "shared"),
    [
        ("cuda", {}, True),
        ("cuda", {"use_distributed_optimizer": False}, False),
        ("cpu", {}, None),
        ("cpu", {"use_distributed_optimizer": True}, True),
    ],
)
def test_data_parallel_ranks_on_gpus_share_the_optimizers_state(
    device: Device, given: dict[str, bool], shared: bool | None
) -> None:
    settings = learner_settings(replace(Config(), megatron=given), Path("model"), device)
    assert settings.megatron.get("use_distributed_optimizer") is shared


def test_fsdp_has_no_such_flag() -> None:
    settings = learner_settings(config("model", train_backend="fsdp"), Path("model"), "cuda")
    assert settings.megatron == {}


@pytest.mark.parametrize(
    ("device", "given", "seconds"),
    [("cuda", None, 1800.0), ("cpu", None, 300.0), ("cuda", 60.0, 60.0), ("cpu", 900.0, 900.0)],
)
def test_the_first_start_on_a_gpu_may_take_longer(
    device: str, given: float | None, seconds: float
) -> None:
    asked = config("cluster", engine_start_timeout_seconds=given)
    assert engine_start_seconds(replace(asked, model=config("model", device=device).model)) == (
        seconds
    )


@pytest.mark.parametrize(
    ("longest", "given", "seconds"),
    [(1024, None, 600.0), (32768, None, 6553.6), (32768, 30.0, 30.0)],
)
def test_a_requests_deadline_fits_its_length(
    longest: int, given: float | None, seconds: float
) -> None:
    asked = config("rollout", rollout_max_response_len=longest, generate_timeout_seconds=given)
    assert request_seconds(asked) == pytest.approx(seconds)


def test_the_deadline_fits_the_longest_evaluation(tmp_path: Path) -> None:
    flags = {"eval_interval": 1, "eval_prompt_data": ("aime", str(tmp_path / "aime.jsonl"))}
    asked = config("eval", **flags, eval_max_response_len=16384)
    assert request_seconds(asked) == pytest.approx(3276.8)


@pytest.mark.parametrize(
    ("device", "mode", "sglang", "late"),
    [
        ("cuda", "in_place", {}, True),
        ("cuda", "retract", {}, False),
        ("cuda", "drain", {}, False),
        ("cuda", "in_place", {"disable_overlap_schedule": True}, False),
        ("cpu", "in_place", {}, False),
    ],
)
def test_only_a_step_under_way_at_a_pause_is_labelled_late(
    device: str, mode: str, sglang: dict[str, bool], late: bool
) -> None:
    asked = replace(config("cluster", weight_update_mode=mode), sglang=sglang)
    assert labels_late(asked, device) is late


@pytest.mark.parametrize(
    ("device", "colocate", "asked"),
    [
        ("cuda", True, {"enable_memory_saver": True, "enable_weights_cpu_backup": True}),
        ("cuda", False, {}),
        ("cpu", True, {}),
    ],
)
def test_engines_that_leave_come_back_with_their_weights(
    device: str, colocate: bool, asked: dict[str, bool]
) -> None:
    """A save is a turn without a push: without a copy on the host they would come back empty."""
    both = replace(config("cluster", colocate=colocate), model=config("model", device=device).model)
    assert sglang_options(both, device) == asked
