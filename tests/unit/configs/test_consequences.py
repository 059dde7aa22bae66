"""What follows from flags that were given for others."""

from __future__ import annotations

import pytest

from configs.command_line.loader import load_config
from configs.schema import Config
from pipeline.wiring.foreign_flags import FAMILIES

DISTIL = "--use-opd --opd-type sglang --rm-url http://127.0.0.1:13141/generate"
SLIMES = "slime.rollout.on_policy_distillation"
FULLY_ASYNC = "slime.rollout.fully_async_rollout.generate_rollout_fully_async"


def taken(words: str) -> Config:
    return load_config(["--mock", *words.split()], FAMILIES)


def test_slimes_address_of_a_teacher_is_ours() -> None:
    functions = (
        f"--custom-rm-path {SLIMES}.reward_func"
        f" --custom-reward-post-process-path {SLIMES}.post_process_rewards"
    )
    config = taken(f"{DISTIL} {functions}")
    assert config.distill.opd_teacher_url == "http://127.0.0.1:13141"
    assert config.reward.rm_url is config.reward.custom_rm_path is None
    assert config.algorithm.custom_reward_post_process_path is None
    assert any(
        "--rm-url http://127.0.0.1:13141/generate is --opd-teacher-url" in note
        for note in config.notes
    )


def test_a_reward_servers_address_stays_one() -> None:
    config = taken(f"{DISTIL} --rm-type remote_rm --opd-teacher-load model")
    assert config.reward.rm_url == "http://127.0.0.1:13141/generate"
    assert config.distill.opd_teacher_url is None


def test_with_a_teacher_a_scorer_without_labels_is_left_out_and_that_is_said() -> None:
    config = taken(f"{DISTIL} --rm-type math")
    assert config.reward.rm_type is None
    assert any("--rm-type math (without --label-key" in note for note in config.notes)
    assert taken(f"{DISTIL} --rm-type math --label-key label").reward.rm_type == "math"


def test_slimes_asynchronous_rollouts_are_one_ahead_unless_more_are_asked_for() -> None:
    words = f"--rollout-function-path {FULLY_ASYNC}"
    assert taken(words).async_.async_buffer_size == 1
    assert taken(f"{words} --async-buffer-size 4").async_.async_buffer_size == 4
    assert taken(f"--async-buffer-size 4 {words}").async_.async_buffer_size == 4


@pytest.mark.parametrize(
    ("knobs", "bound"),
    [
        ((0, 1, 1), 0),  # synchronous is on-policy
        ((1, 1, 1), 2),
        ((4, 1, 1), 8),
        ((5, 2, 1), 6),
        ((2, 100, 1), 2),
        ((0, 4, 3), 1),  # replayed twice more, under the same weights or the next
        ((2, 1, 3), 6),
    ],
)
def test_the_bound_on_staleness_leaves_room_for_reordering(
    knobs: tuple[int, int, int], bound: int
) -> None:
    k, n, times = knobs
    words = f"--async-buffer-size {k} --update-weights-interval {n} --max-times-sampled {times}"
    words += " --rollout-batch-size 12"
    assert taken(words).staleness_bound == bound
    assert taken(f"{words} --max-staleness {bound + 3}").staleness_bound == bound + 3


def test_slimes_filter_of_equal_rewards_is_built_in() -> None:
    path = "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"
    config = taken(f"--dynamic-sampling-filter-path {path}")
    assert config.rollout.dynamic_sampling_filter_path == "zero_std"
