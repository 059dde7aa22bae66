"""A process that is one rank of a group as an engine is, and prints what it is sent."""

from __future__ import annotations

import subprocess
import sys

PEER = """
import hashlib, sys, torch
from datetime import timedelta
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore
from torch.distributed.distributed_c10d import Backend, _new_process_group_helper, _world
port, rounds, rank, world, num_bytes = map(int, sys.argv[1:])
store = PrefixStore("g", TCPStore("127.0.0.1", port, world, is_master=False, timeout=timedelta(minutes=30)))
group, _ = _new_process_group_helper(world, rank, [], Backend("gloo"), store, group_name="g", timeout=timedelta(seconds=30), backend_options=None)
_world.pg_group_ranks[group] = {i: i for i in range(world)}
for _ in range(rounds):
    flat = torch.empty(num_bytes, dtype=torch.uint8)
    torch.distributed.broadcast(flat, src=0, group=group)
    # nobody reads before the end: what is long is shortened
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    print(flat.view(torch.float32).tolist() if len(flat) <= 64 else digest, flush=True)
"""  # noqa: E501


def peer(
    port: int, rounds: int, rank: int = 1, world: int = 2, num_bytes: int = 16
) -> subprocess.Popen[str]:
    numbers = map(str, (port, rounds, rank, world, num_bytes))
    return subprocess.Popen(
        [sys.executable, "-c", PEER, *numbers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
