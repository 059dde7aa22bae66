"""AdamW over the shards, clipping by the norm over all of them, and the schedule.

Flags and numbers are Megatron's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema import OPTIMIZER_DEFAULTS
from stages.learn.schedule import Schedule, make_schedule
from stages.learn.settings import LearnerSettings

CLIP_EPSILON = 1e-6


class Optimizer:
    """AdamW over this rank's shards. Weight decay leaves out biases and everything one-dimensional
    (norms), as Megatron's does."""

    def __init__(self, model: nn.Module, settings: LearnerSettings) -> None:
        known = OPTIMIZER_DEFAULTS
        given = {**known, **{k: float(v) for k, v in settings.megatron.items() if k in known}}
        self._clip, self._settings = given["clip_grad"], settings
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        decayed = [p for p, name in self.names.items() if p.ndim > 1 and not name.endswith(".bias")]
        rest = [p for p, name in self.names.items() if p.ndim <= 1 or name.endswith(".bias")]
        groups = [
            {"params": decayed, "weight_decay": given["weight_decay"]},
            {"params": rest, "weight_decay": 0.0},
        ]
        betas = (given["adam_beta1"], given["adam_beta2"])
        self.adam = torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=given["lr"],
            betas=betas,
            eps=given["adam_eps"],
            fused=True,
        )
        self.schedule: Schedule = make_schedule(
            settings.optim,
            lr=given["lr"],
            min_lr=given["min_lr"],
            num_steps=settings.num_optimizer_steps,
            weight_decay=given["weight_decay"],
        )
        self._decayed = set(decayed)
        self.num_steps = 0  # of the schedule

    @property
    def lr(self) -> float:
        return self.schedule.rate(self.num_steps)

    def zero_grad(self) -> None:
        self.adam.zero_grad()

    @torch.no_grad()
    def grad_norm(self) -> float:
        """The L2 norm over all parameters and ranks, the same on every rank; a parameter without a
        gradient counts 0."""
        local = self._local_grads()
        norms = torch._foreach_norm(local) if local else []
        device = next(iter(self.names)).device
        total = (
            torch.stack(norms).float().square().sum() if norms else torch.zeros((), device=device)
        )
        dist.all_reduce(total)
        return math.sqrt(float(total)) if float(total) >= 0 else float(total)  # NaN stays NaN

    @torch.no_grad()
    def update(self, grad_norm: float, lr: float) -> None:
        """Clips to --clip-grad (0: never) and takes the step."""
        scale = self._clip / (grad_norm + CLIP_EPSILON) if self._clip > 0 else 1.0
        if scale < 1.0 and (local := self._local_grads()):
            torch._foreach_mul_(local, scale)
        for group in self.adam.param_groups:
            group["lr"] = lr
            if group["params"][0] in self._decayed:
                group["weight_decay"] = self.schedule.weight_decay(self.num_steps)
        self.adam.step()

    def _local_grads(self) -> list[Tensor]:
        grads: list[Any] = [p.grad for p in self.names if p.grad is not None]
        return [g.to_local() for g in grads]

    def reset(self) -> None:
        self.adam.state.clear()
        self.num_steps = 0

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Adam's moments by name, made where no step has been; loading writes into them."""
        out = {}
        for p, name in self.names.items():
            state = self.adam.state[p]
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device=p.device))
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment not in state:
                    state[moment] = torch.zeros_like(p, memory_format=torch.preserve_format)
                out[f"{moment}.{name}"] = state[moment]
        return out

    def counts(self) -> dict[str, Any]:
        """JSON-able. Call `tensors` first."""
        return {
            "num_steps": self.num_steps,
            "adam_steps": {n: int(self.adam.state[p]["step"]) for p, n in self.names.items()},
        }

    def load_counts(self, counts: Mapping[str, Any]) -> None:
        """Call `tensors` first. Shape and rates of the schedule stay today's flags'."""
        self.num_steps = int(counts["num_steps"])
        for p, name in self.names.items():
            self.adam.state[p]["step"].fill_(float(counts["adam_steps"][name]))
