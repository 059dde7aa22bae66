"""The learner's side of a push, in the process of its rank 0: gather, flatten, broadcast. Knows
torch, not SGLang.

Ranks other than 0 have no sender: they take part in `prepare` by iterating their own weights (a
collective) and dropping what they get. `prepare` therefore calls `weights()` exactly once and runs
it to its end, also when it fails half-way."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import WeightSyncError
from pipeline.core.ports import free_port
from stages.publish.buckets import TensorMeta, flatten, split

if TYPE_CHECKING:
    import torch

JOIN_SECONDS = 30.0  # for all ranks of a group to come; meanwhile its engines do not decode
GROUP_TIMEOUT_SECONDS = 120.0  # of one broadcast; an engine that dies is noticed sooner
ASYNC_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"  # read where a group is made
POLL_SECONDS = 0.001  # between two looks at a broadcast on a GPU


class BroadcastSender:
    """Implements the methods of `WeightSender`, synchronously. Every failure is a WeightSyncError
    and leaves it usable.

    What `prepare` gathered is a copy and stays until the next `prepare`: an engine that restarts in
    between gets exactly the weights of its peers, however far the learner has gone on. `staging` is
    where the copy lies (default: `device`); `torch.device("cpu")` saves GPU memory and costs a copy
    per bucket and wave.

    Groups may be joined and left, and buckets be sent, on another thread than the one that trains.
    A peer that dies must not take this process with it: gloo raises; NCCL's groups are made without
    the watchdog that ends the process, are given up after `timeout_seconds`, and are aborted, never
    destroyed, since destroying waits for peers. What is said of NCCL here is not tested, for lack
    of GPUs: that an abort ends a kernel which waits for a dead peer, that training goes on
    meanwhile, and that two communicators on one GPU do not hold each other up."""

    def __init__(
        self,
        weights: Callable[[], Iterator[tuple[str, torch.Tensor]]],
        export: Callable[[Path], None],
        device: torch.device,
        staging: torch.device | None = None,
        address: str = "127.0.0.1",
        timeout_seconds: float = GROUP_TIMEOUT_SECONDS,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        """`weights()` yields (Hugging Face name, whole tensor), in any order but the same on all
        ranks. `address`: of this node, as the engines reach it."""
        self._address = address
        self._weights, self._export = weights, export
        self._device, self._staging = device, staging or device
        self._timeout = timedelta(seconds=timeout_seconds)
        self._join_timeout = timedelta(seconds=join_seconds)
        self._stream: torch.cuda.Stream | None = None  # of broadcasts; training has its own
        self._groups: dict[str, Any] = {}
        self._buckets: list[torch.Tensor] = []

    def meeting_place(self) -> tuple[str, int]:
        """An address of this node and a port that is free on it, for the next `join`."""
        return self._address, free_port(host=self._address)

    def join(self, group_name: str, address: str, port: int, world_size: int, backend: str) -> None:
        """Enters a group as rank 0 and waits for the ranks of all its engines.

        The store at which they meet is served from here."""
        if group_name in self._groups:
            raise WeightSyncError(f"the learner is already in group {group_name}: leave it first")
        try:
            self._groups[group_name] = _make_group(
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

    def prepare(self, max_bucket_bytes: int) -> list[list[TensorMeta]]:
        """Copies the current weights into buckets of at most `max_bucket_bytes` (of one tensor at
        least), which replace the last ones."""
        self._buckets = []  # first: two copies at once may not fit
        metas, buckets = [], []
        weights = self._weights()
        try:
            for bucket in split(weights, max_bucket_bytes):
                meta, flat = flatten(bucket, self._staging)
                metas.append(meta)
                buckets.append(flat)
        except (RuntimeError, MemoryError) as error:
            # torch's out-of-memory errors are RuntimeErrors
            for _ in weights:  # the other ranks are in there too
                pass
            raise WeightSyncError(
                f"the weights could not be gathered into buckets: {type(error).__name__}: {error}"
            ) from error
        self._buckets = buckets
        return metas

    def broadcast(self, group_name: str, bucket: int) -> None:
        """Sends one bucket; returns when it has left."""
        import torch.distributed as dist

        group = self._groups.get(group_name)
        if group is None or bucket >= len(self._buckets):
            raise WeightSyncError(
                f"nothing to send: bucket {bucket} of {len(self._buckets)}, group {group_name}"
                f" joined: {group is not None}"
            )
        try:
            if self._device.type == "cuda":
                self._broadcast_on_gpu(group, self._buckets[bucket])
            else:
                dist.broadcast(self._buckets[bucket], src=0, group=group)
        except Exception as error:
            raise WeightSyncError(
                f"broadcasting bucket {bucket} to group {group_name} failed:"
                f" {type(error).__name__}: {error}"
            ) from error

    def _broadcast_on_gpu(self, group: Any, flat: torch.Tensor) -> None:
        """Looks at the broadcast until it is done, instead of waiting for it: a wait has no end
        when a peer is gone. Raises TimeoutError; the group is of no use then."""
        import torch
        import torch.distributed as dist

        self._stream = self._stream or torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            work = dist.broadcast(flat.to(self._device), src=0, group=group, async_op=True)
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


def _make_group(
    name: str,
    address: str,
    port: int,
    world_size: int,
    backend: str,
    *,
    join_timeout: timedelta,
    timeout: timedelta,
) -> Any:
    """A process group beside the learner's own, with rank numbers of its own.

    `new_group` only makes subsets of the default group, which the engines are not in. So, as the
    engines do: a TCP store that rank 0 serves, keys prefixed by the group's name, and torch's own
    (private) constructor on it. When it fails, the store goes at once: engines that came and wait
    at it for others hear of it."""
    from torch.distributed import PrefixStore, TCPStore
    from torch.distributed.distributed_c10d import Backend, _new_process_group_helper, _world

    # A socket of our own, bound to `address`: torch by itself listens on every interface.
    listener = socket.create_server((address, port))
    fd = listener.detach()  # the store owns it from here
    store: Any = TCPStore(
        address, port, world_size, is_master=True, timeout=join_timeout, master_listen_fd=fd
    )
    try:
        with _without_watchdog() if backend == "nccl" else contextlib.nullcontext():
            group, _ = _new_process_group_helper(
                world_size,
                0,
                [],
                Backend(backend),
                PrefixStore(name, store),
                group_name=name,
                timeout=join_timeout,
                backend_options=None,
            )
        group.set_timeout(timeout)
    except BaseException:
        del store  # the error's traceback would keep it
        raise
    # so that collectives know its ranks
    _world.pg_group_ranks[group] = {rank: rank for rank in range(world_size)}
    return group


@contextlib.contextmanager
def _without_watchdog() -> Iterator[None]:
    """NCCL groups made in here report what goes wrong and leave the process alone; others, such as
    the learner's own, are as they were."""
    before = os.environ.get(ASYNC_ERRORS)
    os.environ[ASYNC_ERRORS] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ASYNC_ERRORS]
        else:
            os.environ[ASYNC_ERRORS] = before
