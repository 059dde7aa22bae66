"""A process group in which this process is rank 0 and engines are the others."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

ASYNC_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"  # read where a group is made


def make_group(
    name: str,
    address: str,
    port: int,
    world_size: int,
    backend: str,
    *,
    join_timeout: timedelta,
    timeout: timedelta,
) -> Any:
    """A process group beside the learner's own, with rank numbers of its own: formed when all came.
    gloo's ranks are connected then; NCCL's connect at their first broadcast, for which engines have
    to be paused.

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
