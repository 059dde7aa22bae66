"""Free TCP ports of this machine, away from those that the kernel gives to outgoing connections."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

from pipeline.core.errors import EngineError

LOOPBACK = "127.0.0.1"
# Linux hands out 32768-60999: a port from there may be gone between asking and binding
PORTS = range(20000, 32000)


def free_port(
    taken: Sequence[int] = (), rng: random.Random | None = None, host: str = LOOPBACK
) -> int:
    """A port of this machine's address `host` on which nothing listens now.

    Raises EngineError when a thousand tries find none.
    """
    rng = rng or random.Random()
    for _ in range(1000):
        port = rng.choice(PORTS)
        if port not in taken and is_free(port, host):
            return port
    raise EngineError(
        f"no free port found between {PORTS.start} and {PORTS.stop}: what listens there? (ss -ltn)"
    )


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Nothing on `host` listens on `port` at this moment."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
