"""TCP connections that notice when the other machine, or the way to it, is gone.

A server that dies resets its connections; a node that loses power, or a link that is cut, says
nothing, and whoever reads from it would wait for as long as its deadline allows. The kernel asks
instead, whatever the server is busy with: an idle connection is probed (tcp(7): TCP_KEEPIDLE,
TCP_KEEPINTVL, TCP_KEEPCNT), and what was sent must be acknowledged in time (TCP_USER_TIMEOUT)."""

from __future__ import annotations

import socket
from typing import Any

IDLE_SECONDS, BETWEEN_SECONDS, PROBES = 10, 5, 3
UNACKNOWLEDGED_SECONDS = IDLE_SECONDS + BETWEEN_SECONDS * PROBES


def watched_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for an address as `socket.getaddrinfo` gives it (aiohttp's `socket_factory`)."""
    family, kind, protocol, *_ = address
    out = socket.socket(family, kind, protocol)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": IDLE_SECONDS,
        "TCP_KEEPINTVL": BETWEEN_SECONDS,
        "TCP_KEEPCNT": PROBES,
        "TCP_USER_TIMEOUT": 1000 * UNACKNOWLEDGED_SECONDS,
    }
    for name, value in options.items():
        if hasattr(socket, name):  # not every system has all of them
            out.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return out
