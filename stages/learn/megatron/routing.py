"""Routing replay: the routers of a mixture of experts take the experts that another pass took, not
their own top-k.

R3 (--use-rollout-routing-replay; Ma et al. 2025, "Stabilizing MoE Reinforcement Learning by
Aligning Training and Inference Routers", arXiv:2510.11370): the engine's, in every pass of the
policy. R2 (--use-routing-replay; Zheng et al. 2025, "Group Sequence Policy Optimization",
arXiv:2507.18071, section 5.3): those of the pass for the old log-probs, in the optimizer steps
behind it.

What is replayed is which experts; what they weigh comes from the router's own scores, so the router
learns. Reference and critic route freely, as in slime: they are other functions, whose own choice
is the right one."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.transformer.moe.moe_layer import MoELayer
from torch import Tensor

from configs.schema import AlgorithmConfig
from pipeline.core.errors import ConfigError, LearnerError
from pipeline.core.types import TrainSample
from stages.learn.megatron.packing import FREE, PackedMicroBatch

Mode = Literal["free", "capture", "replay"]


class ForcedExperts(NamedTuple):
    """The experts that tokens of one layer and micro-batch are sent to."""

    experts: Tensor  # [tokens, top-k] int16; FREE: the router's own choice
    complete: bool  # no FREE in it


class RouterSeat:
    """What a router asks instead of its top-k: takes the seat of Megatron's RouterReplay, whose
    instances live in one global list that the critic's routers and those of earlier models would
    share, and which cannot leave single tokens to the router."""

    def __init__(self) -> None:
        self.mode: Literal["free", "capture", "replay", "recompute"] = "free"
        self.forced: ForcedExperts | None = None
        self.captured: Tensor | None = None  # [tokens, top-k] int16
        # of micro-batches whose backward pass runs the router again, in that order
        self.awaiting: deque[ForcedExperts] = deque()
        # [2]: choices that differ from the router's own, choices; None: do not count
        self.mismatch: Tensor | None = None

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(values, experts) [tokens, top-k] of scores [tokens, experts]; the name and arguments are
        those that Megatron calls."""
        assert default_compute_topk is not None
        if self.mode in ("free", "capture"):
            values, own = default_compute_topk(scores, topk, num_groups, group_topk)
            if self.mode == "capture":
                self.captured = own.to(torch.int16)
            return values, own
        forced = self.awaiting.popleft() if self.mode == "recompute" else self.forced
        assert forced is not None and len(forced.experts) == len(scores), (
            "experts of another micro-batch"
        )
        experts = forced.experts.long()
        counts = self.mode == "replay" and self.mismatch is not None
        if counts or not forced.complete:
            own = default_compute_topk(scores.detach(), topk, num_groups, group_topk)[1]
            if counts:
                self._count(experts, own)
            experts = torch.where(experts == FREE, own, experts)
        return scores.gather(1, experts), experts

    def _count(self, experts: Tensor, own: Tensor) -> None:
        assert self.mismatch is not None
        known = experts != FREE
        differs = known & (experts[:, :, None] != own[:, None, :]).all(-1)
        self.mismatch += torch.stack([differs.sum(), known.sum()])


class Routing:
    """The seats of this rank's model chunks.

    Raises ConfigError where the model has no experts, or routes in a way that bypasses the
    seats."""

    def __init__(
        self,
        models: Sequence[Any],
        chunks: Sequence[Any],
        config: Any,
        algorithm: AlgorithmConfig,
        device: torch.device,
    ) -> None:
        """`chunks`: `models` as Megatron's schedule hands them out (wrapped), in the same order."""
        self._flag = (
            "--use-rollout-routing-replay"
            if algorithm.use_rollout_routing_replay
            else "--use-routing-replay"
        )
        self.captures = not algorithm.use_rollout_routing_replay
        self._config = config
        _check_config(config, self._flag)
        self._mismatch = torch.zeros(2, dtype=torch.int64, device=device)
        self._seats = {
            id(chunk): [_take_seat(router) for _, router in _routers(model)]
            for chunk, model in zip(chunks, models, strict=True)
        }
        # this rank's with experts, from 0 over the whole model
        self.layers = [layer for model in models for layer, _ in _routers(model)]
        # id of a micro-batch -> of a chunk -> [own tokens, its layers, top-k]
        self._captured: dict[int, dict[int, Tensor]] = {}

    def check(self, sample: TrainSample) -> None:
        """Raises LearnerError for experts that the model does not have.

        `sample.routed_experts`: [n, layers, top-k].
        """
        experts, config = sample.routed_experts, self._config
        if experts is None:
            return
        shape = (config.num_layers, config.moe_router_topk)
        if experts.shape[1:] != shape:
            raise LearnerError(
                f"sample {sample.index}: routed experts of shape {experts.shape}, the model's are"
                f" [tokens, {shape[0]}, {shape[1]}]"
            )
        if (
            experts.size
            and not FREE <= int(experts.min()) <= int(experts.max()) < config.num_moe_experts
        ):
            found = f"{int(experts.min())} to {int(experts.max())}"
            raise LearnerError(
                f"sample {sample.index}: routed experts {found}, the model has 0 to"
                f" {config.num_moe_experts - 1}"
            )
        if shape[1] > 1 and (
            silent := [i for i in self.layers if len(experts) and not experts[:, i].any()]
        ):
            raise LearnerError(
                f"sample {sample.index}: only expert 0, {shape[1]} times a token, in layers"
                f" {silent}: the engine did not write them down (with several pipeline stages"
                " SGLang returns those of one stage only)"
            )

    def own_tokens(self, mb: PackedMicroBatch) -> Tensor | None:
        """The rows of `mb.routed_experts` that this rank's routers see: its slice under sequence
        parallelism."""
        experts = mb.routed_experts
        if experts is None or not self._config.sequence_parallel:
            return experts
        return experts.chunk(self._config.tensor_model_parallel_size)[
            mpu.get_tensor_model_parallel_rank()
        ]

    @contextlib.contextmanager
    def around(
        self, chunk: Any, mb: PackedMicroBatch, mode: Mode, *, forward_only: bool
    ) -> Iterator[None]:
        """Put this around one forward pass of `chunk`.

        The backward passes that follow and run routers again give them the same experts."""
        seats = self._seats[id(chunk)]
        if mode == "replay" and mb.routed_experts is not None:
            self._force(chunk, mb.routed_experts, count=not forward_only)
        else:
            _set(seats, "capture" if mode == "capture" else "free")
        yield
        if mode == "capture" and seats:
            found = [s.captured for s in seats if s.captured is not None]
            self._captured.setdefault(id(mb), {})[id(chunk)] = torch.stack(found, 1).cpu()
        recomputes = (
            mode == "replay"
            and mb.routed_experts is not None
            and not forward_only
            and self._config.recompute_granularity is not None
        )
        for seat in seats:
            if recomputes and seat.forced is not None:
                seat.awaiting.append(seat.forced)
            seat.mode, seat.forced, seat.captured = (
                "recompute" if recomputes else "free",
                None,
                None,
            )

    def _force(self, chunk: Any, experts: Tensor, *, count: bool) -> None:
        start = 0
        for key, seats in self._seats.items():
            if key != id(chunk):
                start += len(seats)
                continue
            own = experts[:, start : start + len(seats)]
            complete = bool((own != FREE).all())
            on_device = own.to(self._mismatch.device, non_blocking=True)
            for i, seat in enumerate(seats):
                seat.mode, seat.forced = "replay", ForcedExperts(on_device[:, i], complete)
                seat.mismatch = self._mismatch if count else None
            return

    def finish(self) -> None:
        """Call this after all micro-batches of a run: nothing is forced any more."""
        for seats in self._seats.values():
            _set(seats, "free")
            for seat in seats:
                seat.forced = seat.captured = seat.mismatch = None
                seat.awaiting.clear()

    def take_captured(self, mb: PackedMicroBatch) -> Tensor | None:
        """[own tokens, own layers, top-k] int16: the experts of a capturing pass over this
        micro-batch; None on a rank without experts."""
        parts = self._captured.pop(id(mb), {})
        return torch.cat([parts[key] for key in self._seats if key in parts], 1) if parts else None

    def reset_mismatch(self) -> None:
        """Drops the counts that a refused step may have left behind."""
        self._mismatch.zero_()

    def take_mismatch(self) -> float | None:
        """Share of the replayed choices, since the last call and over all ranks, that the routers
        would not have made. None: no replay."""
        dist.all_reduce(self._mismatch)
        differing, total = self._mismatch.tolist()
        self._mismatch.zero_()
        return differing / total if total else None


def _routers(model: Any) -> list[tuple[int, Any]]:
    """(layer from 0 over the whole model, router) of the decoder layers that have experts."""
    return [
        (layer.layer_number - 1, layer.mlp.router)
        for layer in model.decoder.layers
        if isinstance(layer.mlp, MoELayer)
    ]


def _take_seat(router: Any) -> RouterSeat:
    router.router_replay = RouterSeat()
    return router.router_replay


def _set(seats: Sequence[RouterSeat], mode: Literal["free", "capture"]) -> None:
    for seat in seats:
        seat.mode = mode


def _check_config(config: Any, flag: str) -> None:
    if not config.num_moe_experts:
        raise ConfigError(
            f"{flag}: the model has no experts whose routing could be replayed. Drop the flag"
        )
    if config.moe_router_fusion:
        raise ConfigError(
            f"{flag} with --moe-router-fusion: the fused router picks its experts where nobody can"
            " tell it. Drop one of the two"
        )
    if config.cuda_graph_impl != "none":
        raise ConfigError(
            f"{flag} with --cuda-graph-impl {config.cuda_graph_impl}: a graph asks nobody for its"
            " experts. Drop one of the two"
        )
    if "sinkhorn" in config.moe_router_load_balancing_type:
        raise ConfigError(
            f"{flag} with --moe-router-load-balancing-type sinkhorn: it picks experts by a plan"
            " over tokens. Drop one of the two"
        )
