"""The weights that this rank sends in a push, whole and by Hugging Face's names; gathered within
its pipeline stage only.

Of every stage the first tensor rank of the first copy (data and context parallelism) sends what all
of its ranks have, and of every expert-parallel shard the first rank that holds it sends its
experts. So no rank is given anything of another stage, nor of another shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from torch import Tensor

from stages.learn import rendezvous
from stages.learn.megatron.names import is_expert, weights_of
from stages.learn.megatron.weights import merged, split_dim
from stages.learn.sent import deal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """The ranks among which a weight of this rank is split, in the copy that sends it."""

    group: Any
    helps: bool  # is this rank in that copy?

    @property
    def size(self) -> int:
        return int(dist.get_world_size(self.group))

    @property
    def sender(self) -> int:
        return int(dist.get_global_rank(self.group, 0))

    @property
    def sends(self) -> bool:
        return self.helps and self.sender == dist.get_rank()


class SentWeights:
    """Every rank makes one, at the same time, and calls `gather` when all do."""

    def __init__(self, bridge: Any, models: Sequence[torch.nn.Module]) -> None:
        self._bridge, self._models = bridge, models
        self._dense = _Share(
            group=mpu.get_tensor_model_parallel_group(),
            helps=mpu.get_data_parallel_rank(with_context_parallel=True) == 0,
        )
        self._experts = _Share(
            group=mpu.get_expert_tensor_parallel_group(),
            helps=mpu.get_expert_data_parallel_rank() == 0,
        )
        # What all ranks of a stage have comes first on all of them: a rank that sends experts, and
        # waits for engines, must not keep one waiting that gathers the rest.
        names = sorted(self._tensors(), key=is_expert)
        could = [(n, tuple(bridge.hf_names(n))) for n in names if self._share(n).sends]
        dealt = [set(names) for names in deal(rendezvous.gather_over_world(could))]
        self._names = [
            n for n in names if self._share(n).helps and n in dealt[self._share(n).sender]
        ]

    def described(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, a tensor without memory) of what this rank sends, in order."""
        tensors = self._tensors()
        for name in self._names:
            own, share = tensors[name], self._share(name)
            if share.sends:
                shape, dim = list(own.shape), split_dim(self._bridge.config, name, own)
                if dim is not None:
                    shape[dim] *= share.size
                whole = torch.empty(shape, dtype=own.dtype, device="meta")
                yield from self._bridge.to_hf(name, whole)

    def gather(self) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, whole tensor) of what this rank sends. A collective of the ranks that
        share it.

        A tensor may share memory with the model: copy it before the next step."""
        tensors = self._tensors()
        for name in self._names:
            whole = self._gathered(name, tensors[name])
            if whole is not None:
                yield from self._bridge.to_hf(name, whole)
            del whole  # before the next one is gathered

    def _gathered(self, name: str, own: Tensor) -> Tensor | None:
        """The whole weight, on the rank that sends it."""
        share, dim = self._share(name), split_dim(self._bridge.config, name, own)
        if dim is None or share.size == 1:
            return own.detach() if share.sends else None
        own = own.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(share.size)] if share.sends else None
        dist.gather(own, parts, dst=share.sender, group=share.group)
        return None if parts is None else merged(self._bridge.config, name, parts, dim)

    def _share(self, name: str) -> _Share:
        return self._experts if is_expert(name) else self._dense

    def _tensors(self) -> dict[str, Tensor]:
        """Agreed name -> this rank's tensor."""
        return {
            agreed: tensors[own]
            for m in self._models
            for tensors in (weights_of(m),)
            for own, agreed in self._bridge.names(m).items()
        }
