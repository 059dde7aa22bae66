"""What weights of your own (--custom-tis-function-path) call: every rank has whole responses here,
so there is nothing to gather and nothing to cut."""

from __future__ import annotations

from typing import TypeVar

from pipeline.core.slime_names import refuse

T = TypeVar("T")
__getattr__ = refuse("slime.backends.megatron_utils.cp_utils")


def all_gather_with_cp(tensor: T, total_length: int, response_length: int) -> T:
    return tensor


def slice_log_prob_with_cp(log_prob: T, total_length: int, response_length: int) -> T:
    return log_prob
