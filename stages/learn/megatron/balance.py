"""Balance of the experts: the bias that no gradient moves, and the auxiliary losses that flags add
to the policy's.

The bias (--moe-router-bias-update-rate) is Megatron's: after every optimizer step up for experts
with fewer tokens than the mean, down for those with more. Source: Wang et al. 2024,
"Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", arXiv:2408.15664."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.transformer.moe.moe_utils import (
    clear_aux_losses_tracker,
    get_moe_layer_wise_logging_tracker,
)
from torch import Tensor

from pipeline.core.errors import ConfigError

# --moe-router-load-balancing-type -> Megatron's name of what it adds, from which ours is made
_LOSSES = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
}


def expert_biases(models: Sequence[torch.nn.Module]) -> list[Tensor]:
    """The biases of --moe-router-enable-expert-bias: weights that no gradient moves, so Megatron
    keeps them as buffers."""
    return [
        buffer
        for model in models
        for name, buffer in model.named_buffers()
        if name.endswith("router.expert_bias")
    ]


class Balance:
    """The balance of one model's experts. Raises ConfigError for flags that would change
    nothing."""

    def __init__(self, models: Sequence[torch.nn.Module], config: Any) -> None:
        _check(config)
        self._biases = expert_biases(models)
        self._losses = _losses_of(config) if config.num_moe_experts else []
        frequency = config.moe_layer_freq
        routed = (
            sum(frequency)
            if isinstance(frequency, list)
            else len(range(0, config.num_layers, frequency))
        )
        self._num_layers = max(1, routed)  # with experts, over all pipeline stages
        self._device = next(models[0].parameters()).device

    @contextlib.contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Put this around an optimizer step: when it raises, the biases are as they were before.

        Megatron moves the biases before anybody has looked at the step, which may be refused."""
        kept = [bias.clone() for bias in self._biases]
        clear_aux_losses_tracker()
        try:
            yield
        except BaseException:
            for bias, old in zip(self._biases, kept, strict=True):
                bias.copy_(old)
            raise

    def metrics(self, num_micro_batches: int) -> dict[str, float]:
        """The auxiliary losses of the step, before their coefficients: means over layers with
        experts, micro-batches and ranks.

        Every rank calls it. A load balancing loss of 1 is perfect balance.
        """
        if not self._losses:
            return {}
        tracker = get_moe_layer_wise_logging_tracker()
        none = torch.zeros(1, device=self._device)
        sums = torch.stack(
            [tracker.get(name, {"values": none})["values"].sum() for name, _ in self._losses]
        )
        dist.all_reduce(sums)
        each = self._num_layers * num_micro_batches
        return {
            f"moe_{name}": float(total) / (each * ranks)
            for (name, ranks), total in zip(self._losses, sums.tolist(), strict=True)
        }


def _losses_of(config: Any) -> list[tuple[str, int]]:
    """(Megatron's name, ranks over whose sum the mean is taken: each computes the whole of its own
    data) of what flags add."""
    copies = mpu.get_data_parallel_world_size()
    kinds, rates = config.moe_router_load_balancing_type, config.moe_aux_loss_coeff
    pairs = zip(kinds, rates, strict=True) if isinstance(kinds, list) else [(kinds, rates)]
    out = [
        (_LOSSES[kind], 1 if kind == "global_aux_loss" else copies)
        for kind, rate in pairs
        if rate and kind in _LOSSES
    ]
    every = (
        copies * mpu.get_tensor_model_parallel_world_size() * mpu.get_context_parallel_world_size()
    )
    return [*out, ("z_loss", every)] if config.moe_z_loss_coeff else out


def _check(config: Any) -> None:
    rate, weights = config.moe_router_bias_update_rate, config.moe_aux_loss_coeff
    if config.num_moe_experts and rate and not config.moe_router_enable_expert_bias:
        raise ConfigError(
            f"--moe-router-bias-update-rate {rate:g}: the model's routers have no expert bias, it"
            " would change nothing. Drop the flag"
        )
    none = "none" in config.moe_router_load_balancing_type
    if config.num_moe_experts and none and any(weights if isinstance(weights, list) else [weights]):
        raise ConfigError(
            f"--moe-aux-loss-coeff {weights} without --moe-router-load-balancing-type: it would"
            " weigh nothing. Add e.g. --moe-router-load-balancing-type seq_aux_loss"
        )
