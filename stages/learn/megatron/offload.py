"""Giving the device up between steps: weights, gradient buffers and optimizer state go to the host,
and come back bit for bit.

What moves are storages, not tensors: each is copied to the host and resized to nothing, so that
every view of it (Megatron's parameters and gradients are views of large buffers) stays what it is,
and finds its numbers again when the storage is filled again. On a CPU the "device" is the host, and
the same happens; it saves nothing there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.learn.megatron.assemble import RankParts
from stages.learn.page_locked import pieces


class _Away(NamedTuple):
    storage: torch.UntypedStorage
    num_bytes: int
    # uint8, num_bytes together or a few more; None: not worth keeping (gradients), zeros when it is
    # back
    host: Sequence[Tensor] | None


class Offload:
    """Moves one rank's memory. Every rank calls `out` and `back` in the same order."""

    def __init__(self, builts: Sequence[RankParts]) -> None:
        """`builts`: the policy, and the critic where there is one."""
        self._builts, self._device = builts, builts[0].device
        self._weights: list[_Away] = []
        self._rest: list[_Away] = []
        # host memory of earlier times, by size: page-locking is slow
        self._pinned: dict[int, list[Tensor]] = {}
        self.is_out = False

    @torch.no_grad()
    def out(self) -> None:
        """Moves everything of the learner off the device but what forward passes left behind."""
        if self.is_out:
            return
        seen: set[int] = set()
        for built in self._builts:
            # else the next forward pass would write into what is not there
            built.finish_param_gather()
            built.optimizer.zero_grad()
        gradients = [self._leave(t, seen, keep=False) for t in self._gradients()]
        self._weights = _found(self._leave(p, seen) for p in self._parameters())
        self._rest = _found([*gradients, *(self._leave(t, seen) for t in self._optimizer_state())])
        self._wait()  # the copies must be whole
        for away in (*self._weights, *self._rest):
            away.storage.resize_(0)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.is_out = True

    @torch.no_grad()
    def back(self) -> None:
        if not self.is_out:
            return
        self._return(self._weights)
        self._return(self._rest)
        self._weights, self._rest, self.is_out = [], [], False

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """While this context lasts everything is on the device; afterwards it is where it was
        before."""
        was_out = self.is_out
        self.back()
        try:
            yield
        finally:
            if was_out:
                self.out()

    @contextlib.contextmanager
    def weights_present(self) -> Iterator[None]:
        """While this context lasts the weights are on the device, for a push. They must not change
        meanwhile."""
        if not self.is_out or not self._weights:
            yield
            return
        lent, self._weights = self._weights, []
        with torch.no_grad():
            self._return(lent, last=False)
        try:
            yield
        finally:
            if self.is_out:  # else all came back meanwhile
                for away in lent:
                    away.storage.resize_(0)
                self._weights = lent

    def _leave(self, tensor: Tensor, seen: set[int], *, keep: bool = True) -> _Away | None:
        """A copy of the tensor's storage; None when it is empty, elsewhere, or copied already."""
        storage = tensor.untyped_storage()
        if (
            not storage.nbytes()
            or tensor.device.type != self._device.type
            or storage.data_ptr() in seen
        ):
            return None
        seen.add(storage.data_ptr())
        host = None
        if keep:
            host = [self._host(size) for size in pieces(storage.nbytes())]
            for part, piece in _parts(storage, host):
                piece.copy_(part, non_blocking=True)
        return _Away(storage, storage.nbytes(), host)

    def _host(self, num_bytes: int) -> Tensor:
        kept = self._pinned.get(num_bytes)
        return (
            kept.pop()
            if kept
            else torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        )

    def _return(self, those: Iterable[_Away], *, last: bool = True) -> None:
        """`last`: the copies on the host are of no use afterwards."""
        for away in those:
            away.storage.resize_(away.num_bytes)
            if away.host is None:
                _bytes(away.storage).zero_()
                continue
            for part, piece in _parts(away.storage, away.host):
                part.copy_(piece, non_blocking=True)
            if last and self._device.type == "cuda":
                for whole in away.host:
                    self._pinned.setdefault(len(whole), []).append(whole)
        self._wait()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _parameters(self) -> Iterator[Tensor]:
        for built in self._builts:
            for ddp in built.ddp:
                yield from (
                    b.param_data
                    for b in (*ddp.buffers, *ddp.expert_parallel_buffers)
                    if b.param_data is not None
                )
                yield from ddp.parameters()

    def _gradients(self) -> Iterator[Tensor]:
        for built in self._builts:
            for ddp in built.ddp:
                yield from (b.grad_data for b in (*ddp.buffers, *ddp.expert_parallel_buffers))

    def _optimizer_state(self) -> Iterator[Tensor]:
        """Master weights and moments. Step counters (of no dimension) stay."""
        for optimizer in (o for built in self._builts for o in built.torch_optimizers):
            yield from (p for group in optimizer.param_groups for p in group["params"])
            yield from (
                t
                for state in optimizer.state.values()
                for t in state.values()
                if isinstance(t, Tensor) and t.dim()
            )


def _found(those: Iterable[_Away | None]) -> list[_Away]:
    return [a for a in those if a is not None]


def _parts(
    storage: torch.UntypedStorage, host: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The storage's bytes and the host's, piece by piece; of the last piece as many as there
    are."""
    at, whole = 0, _bytes(storage)
    for piece in host:
        part = whole[at : at + len(piece)]
        yield part, piece[: len(part)]
        at += len(part)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
