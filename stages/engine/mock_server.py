"""An engine without a model: SGLang's /generate with a fixed response after a fixed time, for
measuring everything around it.

    python -m stages.engine.mock_server --port 0 --response-tokens 128 --latency-seconds 1

prints `ready PORT` when it listens. Written on the bare asyncio protocol, so that it takes a small
part of the CPU time that its client takes, and the measured limit is the client."""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import orjson

HEADER_END = b"\r\n\r\n"
CONTENT_LENGTH = b"content-length:"
NUM_EXPERTS = 128  # a layer


def answer(
    num_tokens: int, text: str, version: int = 0, experts_shape: tuple[int, int, int] | None = None
) -> bytes:
    """The body of one finished request of `num_tokens`, in the form that SGLang 0.5.21 gives it.
    `experts_shape`: [tokens, layers, experts a token] of its routed experts, if it has any."""
    ids = [97 + i % 26 for i in range(num_tokens)]
    meta: dict[str, Any] = {
        "id": "0",
        "finish_reason": {"type": "stop", "matched": 0},
        "prompt_tokens": 0,
        "weight_version": str(version),
        "num_retractions": 0,
        "output_token_logprobs": [
            [-0.6931471824645996 - i / 1024, token, None] for i, token in enumerate(ids)
        ],
        "weight_versions": [{"version": str(version), "start": 0, "end": num_tokens}],
        "completion_tokens": num_tokens,
        "cached_tokens": 0,
        "e2e_latency": 0.001,
    }
    if experts_shape is not None:
        experts = np.arange(np.prod(experts_shape), dtype=np.int32) % NUM_EXPERTS
        meta["routed_experts"] = base64.b64encode(experts.tobytes()).decode()
    return orjson.dumps({"text": text, "output_ids": ids, "meta_info": meta})


class FixedEngine(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as far as a client that sends Content-Length needs it."""

    def __init__(self, generated: bytes, latency_seconds: float) -> None:
        self._generated, self._empty = _response(generated), _response(b"{}")
        self._latency_seconds = latency_seconds
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(HEADER_END)) >= 0:
            head = self._buffer[:end]
            at = head.lower().find(CONTENT_LENGTH)
            length = int(head[at + len(CONTENT_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            total = end + len(HEADER_END) + length
            if len(self._buffer) < total:
                return
            self._buffer = self._buffer[total:]
            if not head.startswith(b"POST /generate "):
                self._transport.write(self._empty)
            elif self._latency_seconds > 0:
                self._loop.call_later(self._latency_seconds, self._transport.write, self._generated)
            else:
                self._transport.write(self._generated)


def _response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


async def serve(
    port: int, body: bytes, latency_seconds: float, ready: Callable[[int], None]
) -> None:
    """Answers with `body` on 127.0.0.1 until cancelled; `ready` is given the port (0 chooses a free
    one)."""
    server = await asyncio.get_running_loop().create_server(
        lambda: FixedEngine(body, latency_seconds), "127.0.0.1", port, backlog=8192
    )
    ready(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--response-tokens", type=int, default=128)
    parser.add_argument("--latency-seconds", type=float, default=0.0)
    parser.add_argument("--text", default="42", help="of every response")
    parser.add_argument(
        "--experts-shape",
        type=int,
        nargs=3,
        metavar=("TOKENS", "LAYERS", "TOP_K"),
        help="of the routed experts of every answer; TOKENS: of prompt and response, but the last",
    )
    args = parser.parse_args()
    shape = tuple(args.experts_shape) if args.experts_shape else None
    uvloop.run(
        serve(
            args.port,
            answer(args.response_tokens, args.text, experts_shape=shape),
            args.latency_seconds,
            lambda port: print(f"ready {port}", flush=True),
        )
    )


if __name__ == "__main__":
    main()
