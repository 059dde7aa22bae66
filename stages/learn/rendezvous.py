"""Where learner ranks meet, and what they tell each other over the default process group. Both
backends use it."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# of one collective: longer than any step; a dead peer is noticed at once, by its closed socket
TIMEOUT = timedelta(minutes=30)


def serve_store(world_size: int, host: str = "127.0.0.1") -> tuple[dist.Store, int]:
    """Rank 0's rendezvous store and its port.

    It listens on `host` only (torch by itself listens on every interface).
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host, 0))
    listener.listen()
    port = listener.getsockname()[1]
    fd = listener.detach()  # the store owns it from here
    return dist.TCPStore(
        host, port, world_size, True, TIMEOUT, wait_for_workers=False, master_listen_fd=fd
    ), port


def join_store(host: str, port: int, world_size: int) -> dist.Store:
    return dist.TCPStore(host, port, world_size, False, TIMEOUT)


def init_process_group(
    device: torch.device, *, rank: int, world_size: int, store: dist.Store | None
) -> None:
    """The default process group: gloo on CPU, NCCL on CUDA. `store` None: a world of one."""
    if device.type == "cpu":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "gloo" if device.type == "cpu" else "nccl"
    dist.init_process_group(
        backend, store=store or dist.HashStore(), rank=rank, world_size=world_size, timeout=TIMEOUT
    )


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when it is true on one."""
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item() > 0)


def largest(value: float, device: torch.device) -> float:
    """The largest value over all ranks."""
    out = torch.tensor([float(value)], dtype=torch.float64, device=device)
    dist.all_reduce(out, op=dist.ReduceOp.MAX)
    return float(out.item())


def world_size() -> int:
    """How many ranks meet."""
    return dist.get_world_size()


def gather_over_world(value: Any) -> list[Any]:
    """The `value` (small, picklable) of every rank."""
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def sum_and_max(sums: Tensor, maxima: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the first and the maximum of the second over all ranks, in place."""
    dist.all_reduce(sums)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
    return sums, maxima
