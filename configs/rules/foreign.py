"""Ranges of Megatron's and SGLang's own flags, as far as a wrong one is known without asking them:
they would find it after minutes, or in another flag's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from configs.flags import words_of
from configs.schema import Config

Range = tuple[Callable[[Any], bool], str]
_AT_LEAST_0: Range = (lambda v: v >= 0, "at least 0")
_AT_LEAST_1: Range = (lambda v: v >= 1, "at least 1")
_ABOVE_0: Range = (lambda v: v > 0, "above 0")
_BELOW_1: Range = (lambda v: 0 <= v < 1, "at least 0 and below 1")
_SHARE: Range = (lambda v: 0 < v < 1, "a share above 0 and below 1")

MEGATRON: Mapping[str, Range] = {
    **dict.fromkeys(("lr", "min_lr", "weight_decay", "clip_grad"), _AT_LEAST_0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "sgd_momentum"), _BELOW_1),
    "adam_eps": _ABOVE_0,
    **dict.fromkeys(("hidden_dropout", "attention_dropout", "layernorm_epsilon"), _BELOW_1),
    **dict.fromkeys(
        (
            "expert_model_parallel_size",
            "expert_tensor_parallel_size",
            "virtual_pipeline_model_parallel_size",
            "recompute_num_layers",
            "moe_router_topk",
        ),
        _AT_LEAST_1,
    ),
    **dict.fromkeys(("moe_aux_loss_coeff", "moe_z_loss_coeff"), _AT_LEAST_0),
}
SGLANG: Mapping[str, Range] = {
    "mem_fraction_static": _SHARE,
    **dict.fromkeys(
        (
            "context_length",
            "dp_size",
            "ep_size",
            "max_prefill_tokens",
            "max_running_requests",
            "max_total_tokens",
            "page_size",
            "pp_size",
            "stream_interval",
            "tp_size",
        ),
        _AT_LEAST_1,
    ),
    "chunked_prefill_size": (lambda v: v == -1 or v >= 1, "-1 (off) or at least 1"),
    **dict.fromkeys(("schedule_conservativeness", "watchdog_timeout"), _ABOVE_0),
    "port": (lambda v: 1 <= v <= 65535, "between 1 and 65535"),
}
_FAMILIES = (("megatron", "", MEGATRON), ("sglang", "sglang-", SGLANG))


def foreign_ranges(config: Config) -> Iterator[str]:
    for section, prefix, known in _FAMILIES:
        for field, value in getattr(config, section).items():
            fits, expected = known.get(field, (lambda _: True, ""))
            for one in value if isinstance(value, list | tuple) else [value]:
                number = _number(one)
                if number is not None and not fits(number):
                    said = " ".join(words_of(value))
                    yield f"--{prefix}{field.replace('_', '-')} {said}: expected {expected}"
                    break


def _number(value: Any) -> float | None:
    """None for what is none: unset, or a form of its own (SGLang takes 128K)."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None
