"""Connections that notice that the other side is gone."""

from __future__ import annotations

import socket

from pipeline.core.sockets import UNACKNOWLEDGED_SECONDS, watched_socket


def test_the_kernel_asks_whether_the_other_side_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        (address, *_) = socket.getaddrinfo(*server.getsockname(), type=socket.SOCK_STREAM)
        with watched_socket(address) as client:
            client.connect(server.getsockname())
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                told = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert told == 1000 * UNACKNOWLEDGED_SECONDS
