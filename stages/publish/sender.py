"""A learner rank's side of a push, in its process: gather, flatten, broadcast. Knows torch, not
SGLang.

Every rank has one. Those that send nothing take part in gathering what others send."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import WeightSyncError
from pipeline.core.ports import free_port
from stages.publish.buckets import TensorMeta, meta_of, num_bytes
from stages.publish.first_rank import make_group
from stages.publish.gathered import Gathered

if TYPE_CHECKING:
    import torch

JOIN_SECONDS = 30.0  # for all ranks of a group to come; meanwhile its engines do not decode
GROUP_TIMEOUT_SECONDS = 120.0  # of one broadcast; an engine that dies is noticed sooner
POLL_SECONDS = 0.001  # between two looks at a broadcast on a GPU
AT_ONCE = 2  # buckets of weights that are not copied: one is sent, the next one filled


class BroadcastSender:
    """One rank of a `WeightSender`, synchronously. Every failure is a WeightSyncError and leaves it
    usable.

    What was gathered as a copy stays until the next one: an engine that restarts in between gets
    exactly the weights of its peers, however far the learner has gone on. On a GPU the copy lies in
    page-locked memory of the host.

    Groups may be joined and left, and buckets be sent, on another thread than the one that trains
    and gathers. A peer that dies must not take this process with it: gloo raises; NCCL's groups are
    made without the watchdog that ends the process, are given up after `timeout_seconds`, and are
    aborted, never destroyed, since destroying waits for peers. What is said of NCCL here is not
    tested, for lack of GPUs: that an abort ends a kernel which waits for a dead peer, that training
    goes on meanwhile, and that two communicators on one GPU do not hold each other up."""

    def __init__(
        self,
        weights: Callable[[], Iterator[tuple[str, torch.Tensor]]],
        export: Callable[[Path], None],
        device: torch.device,
        described: Callable[[], list[TensorMeta]] | None = None,
        *,
        address: str = "127.0.0.1",
        timeout_seconds: float = GROUP_TIMEOUT_SECONDS,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        """`weights()` yields (Hugging Face name, whole tensor) of what this rank sends; it may be a
        collective. `described()` says the same without tensors (by default by looking at
        `weights()`). `address`: of this node, as the engines reach it."""
        self._address = address
        self._weights, self._export, self._device = weights, export, device
        self._described = described or (lambda: [meta_of(n, t) for n, t in weights()])
        self._timeout = timedelta(seconds=timeout_seconds)
        self._join_timeout = timedelta(seconds=join_seconds)
        self._stream: torch.cuda.Stream | None = None  # of broadcasts; training has its own
        self._groups: dict[str, Any] = {}
        self._gathered: Gathered | None = None
        self._copies = True
        self._spare: list[torch.Tensor] = []  # memory of the last copy: page-locking is slow

    # ---- what is sent

    def describe(self) -> list[TensorMeta]:
        """What this rank sends, in order; nothing, on most. A collective."""
        return self._described()

    def begin(self, buckets: Sequence[Sequence[TensorMeta]], copy: bool) -> None:
        """Before `gather`, which fills these buckets: all of them, which are kept, or two at a
        time, each as the one before it is sent. What was gathered before is no more."""
        last = [] if self._gathered is None else self._gathered.release()
        wanted = Counter(sum(map(num_bytes, bucket)) for bucket in buckets) if copy else Counter()
        self._spare = []
        for flat in last:  # two copies at once may not fit
            if wanted[flat.nbytes]:
                wanted[flat.nbytes] -= 1
                self._spare.append(flat)
        del last
        self._gathered = Gathered(buckets, self._new, at_once=None if copy else AT_ONCE)
        self._copies = copy

    def gather(self) -> None:
        """Fills the buckets; without a copy it returns when the last is sent, or at `end`. A
        collective, of which every rank runs to its end."""
        assert self._gathered is not None, "gather() before begin()"
        self._gathered.fill(self._weights())

    def end(self) -> None:
        """Without a copy: no more buckets will be sent."""
        if self._gathered is not None and not self._copies:
            self._gathered.end()

    @property
    def peak_bytes(self) -> int:
        """Most bytes that the buckets which were gathered last took, with the tensor on its way
        into one."""
        return 0 if self._gathered is None else self._gathered.peak_bytes

    def _new(self, size: int) -> torch.Tensor:
        import torch

        for i, flat in enumerate(self._spare):
            if flat.nbytes == size:
                return self._spare.pop(i)
        if not self._copies:
            return torch.empty(size, dtype=torch.uint8, device=self._device)
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._device.type == "cuda")

    # ---- groups

    def meeting_place(self) -> tuple[str, int]:
        """An address of this node and a port that is free on it, for the next `join`."""
        return self._address, free_port(host=self._address)

    def join(self, group_name: str, address: str, port: int, world_size: int, backend: str) -> None:
        """Enters a group as rank 0 and waits for the ranks of all its engines.

        The store at which they meet is served from here."""
        if group_name in self._groups:
            raise WeightSyncError(f"the learner is already in group {group_name}: leave it first")
        try:
            self._groups[group_name] = make_group(
                group_name,
                address,
                port,
                world_size,
                backend,
                join_timeout=self._join_timeout,
                timeout=self._timeout,
            )
        except Exception as error:
            where = f"{backend} group {group_name} of {world_size} at {address}:{port}"
            raise WeightSyncError(
                f"the learner could not form {where}: {type(error).__name__}: {error}"
            ) from error

    def leave(self, group_name: str) -> None:
        """Leaves the group, also when the other side is gone; a group that is not there is no
        error."""
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import _abort_process_group

        group = self._groups.pop(group_name, None)
        if group is None:
            return
        try:
            if self._device.type == "cuda":
                _abort_process_group(group)
            else:
                dist.destroy_process_group(group)
        except Exception as error:
            raise WeightSyncError(
                f"the learner could not leave group {group_name}: {type(error).__name__}: {error}"
            ) from error

    # ---- sending

    def broadcast(self, group_name: str, bucket: int) -> None:
        """Sends one bucket, as soon as it is full; returns when it has left."""
        import torch.distributed as dist

        group = self._groups.get(group_name)
        if group is None or self._gathered is None:
            raise WeightSyncError(
                f"nothing to send: bucket {bucket} of"
                f" {0 if self._gathered is None else len(self._gathered)}, group {group_name}"
                f" joined: {group is not None}"
            )
        flat = self._gathered.take(bucket, self._timeout.total_seconds())
        try:
            if self._device.type == "cuda":
                self._broadcast_on_gpu(group, flat)
            else:
                dist.broadcast(flat, src=0, group=group)
        except Exception as error:
            raise WeightSyncError(
                f"broadcasting bucket {bucket} to group {group_name} failed:"
                f" {type(error).__name__}: {error}"
            ) from error
        del flat
        self._gathered.done(bucket)

    def _broadcast_on_gpu(self, group: Any, flat: torch.Tensor) -> None:
        """Looks at the broadcast until it is done, instead of waiting for it: a wait has no end
        when a peer is gone. Raises TimeoutError; the group is of no use then."""
        import torch
        import torch.distributed as dist

        self._stream = self._stream or torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            sent = flat.to(self._device, non_blocking=True)
            work = dist.broadcast(sent, src=0, group=group, async_op=True)
            until = time.monotonic() + self._timeout.total_seconds()
            while not work.is_completed():
                if time.monotonic() > until:
                    raise TimeoutError(f"not done after {self._timeout.total_seconds():g} s")
                time.sleep(POLL_SECONDS)
            work.wait()

    def export_hf(self, path: Path) -> None:
        """Writes the current weights as safetensors with config.json.

        It is a collective where the export is one."""
        try:
            self._export(path)
        except OSError as error:
            raise WeightSyncError(f"the weights could not be written to {path}: {error}") from error
