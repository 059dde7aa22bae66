"""What benchmarks/push_links.py runs on each of its machines: an engine, or the learner's side."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import aiohttp

from benchmarks.push import Pool
from configs.schema import ClusterConfig
from pipeline.core.types import PreparedWeights
from stages.engine.launch import Engine
from stages.engine.spec import EngineSpec
from stages.publish.buckets import split
from stages.publish.control import EngineControl
from stages.publish.distributed import DistributedTransport

CLIENTS = 2  # requests that decode at every engine meanwhile
TOKENS = 400  # of a request; then comes the next
MORE = 30  # tokens of every client between two pushes
BUFFER_BYTES = 64 << 20  # of a bucket


async def host(address: str, index: int, folder: Path) -> None:
    """Runs an engine until stdin closes; its endpoint is told on stdout."""
    spec = EngineSpec(
        index=index,
        model_path=folder / "model",
        host=address,
        log_path=folder / f"engine-{index}.log",
        device="cpu",
        dtype="float32",
        concurrency=32,
        user={"skip_tokenizer_init": True},
    )
    engine = Engine(spec)
    try:
        await engine.start(0, 240.0)
        print(engine.endpoint, flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await engine.stop()


class TimedControl(EngineControl):
    """Notes how long receiving and loading took."""

    def __init__(self, session: Any, endpoint: str, copies: dict[str, float]) -> None:
        super().__init__(session, endpoint)
        self._copies = copies

    async def receive(self, bucket: bytes) -> None:
        began = time.monotonic()
        await super().receive(bucket)
        self._copies[self.endpoint] += time.monotonic() - began


class TimedTransport(DistributedTransport):
    copies: dict[str, float]

    def _control(self, endpoint: str) -> EngineControl:
        return TimedControl(super()._control(endpoint)._session, endpoint, self.copies)

    async def timed(self, version: int) -> dict[str, Any]:
        self.copies = dict.fromkeys(self._pool.endpoints, 0.0)
        pushed = await self.push(version)
        return asdict(pushed) | {"copies": self.copies, "stalls": dict(self._stall_seconds)}


class Sender:
    """The learner's side, of one rank, with its blocking calls in threads, as in its actor."""

    def __init__(self, folder: Path, address: str) -> None:
        import torch
        from safetensors.torch import load_file

        from stages.publish.sender import BroadcastSender

        weights = load_file(folder / "model" / "model.safetensors")
        self._sender = BroadcastSender(
            lambda: iter(weights.items()), lambda path: None, torch.device("cpu"), address=address
        )

    def __getattr__(self, name: str) -> Any:
        async def call(rank: int, *args: Any) -> Any:
            return await asyncio.to_thread(getattr(self._sender, name), *args)

        return call

    async def prepare(self, max_bucket_bytes: int, max_copy_bytes: int | None) -> PreparedWeights:
        buckets = split(self._sender.describe(), max_bucket_bytes)
        self._sender.begin(buckets, copy=True)
        await asyncio.to_thread(self._sender.gather)
        return PreparedWeights(buckets={0: buckets})

    def sending(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class Client:
    """Keeps an engine decoding, and notes when the tokens of its requests came."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str) -> None:
        self._session, self.endpoint = session, endpoint
        self.times: list[float] = []

    async def run(self) -> None:
        for number in itertools.count():
            body = {"input_ids": [1 + number % 97, 5, 7], "stream": True} | {
                "sampling_params": {"max_new_tokens": TOKENS, "ignore_eos": True}
            }
            url = f"{self.endpoint}/generate"
            async with self._session.post(url, json=body) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        self.times.append(time.monotonic())

    def gaps(self, since: float, until: float) -> list[float]:
        """Between two tokens, of which the second came in this time."""
        return [b - a for a, b in itertools.pairwise(self.times) if since <= b <= until]


@asynccontextmanager
async def decoded(endpoints: list[str]) -> AsyncIterator[list[Client]]:
    """These engines decode meanwhile."""
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        clients = [Client(session, e) for e in endpoints for _ in range(CLIENTS)]
        running = [group.create_task(client.run()) for client in clients]
        yield clients
        for task in running:
            task.cancel()


async def decoding(clients: list[Client]) -> None:
    """Until every client has seen so many more tokens."""
    ends = [(client, len(client.times) + MORE) for client in clients]
    while any(len(client.times) < end for client, end in ends):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def memcpy_bytes_per_second(num_bytes: int) -> float:
    import torch

    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        target.copy_(source)
        seconds.append(time.monotonic() - began)
    return num_bytes / median(seconds)


async def quiet_push(
    transport: TimedTransport, version: int, memcpy: float, rate: float
) -> dict[str, float]:
    """Of engines that generate nothing."""
    pushed = await transport.timed(version)
    one_copy = 8 * pushed["num_bytes"] / rate
    return {
        "push_seconds": pushed["seconds"],
        "copies": pushed["seconds"] / one_copy if one_copy else float("nan"),
        "over_memcpy": pushed["num_bytes"] / pushed["seconds"] / memcpy,
        "num_bytes": pushed["num_bytes"],
    }


async def busy_push(
    transport: TimedTransport, version: int, clients: list[Client]
) -> dict[str, float]:
    """Of engines that decode."""
    await decoding(clients)
    began = time.monotonic()
    pushed = await transport.timed(version)
    ended = time.monotonic()
    await decoding(clients)  # without a push, for the time of a step
    worst = max(pushed["stalls"], key=pushed["stalls"].__getitem__)
    copy = pushed["copies"][worst]
    mine = [c for c in clients if c.endpoint == worst]
    # a client that waits for a core reads several tokens at once: the mean gap is a step
    step = median(fmean(c.gaps(ended, time.monotonic())) for c in mine)
    longest = max((gap for c in mine for gap in c.gaps(began, ended + 5 * step)), default=0.0)
    return {
        "busy_push_seconds": pushed["seconds"],
        "stall_seconds": pushed["stall_seconds"],
        "copy_seconds": copy,
        "step_seconds": step,
        "stall_steps": (pushed["stall_seconds"] - copy) / step,
        "token_gap_steps": (longest - copy) / step,
    }


async def learner(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every (engines, wave fraction) with its pushes."""
    import torch

    torch.set_num_threads(1)
    folder, endpoints = Path(options.folder), options.endpoints
    sender: Any = Sender(folder, options.address)
    cases: dict[tuple[int, float], TimedTransport] = {}
    for number in options.engines:
        for fraction in (1.0, 0.5) if number > 1 else (1.0,):
            pool: Any = Pool(endpoints[:number])
            cluster = ClusterConfig(
                push_wave_fraction=fraction, update_weight_buffer_size=BUFFER_BYTES
            )
            cases[number, fraction] = TimedTransport(pool, sender, cluster)
    size = (folder / "model" / "model.safetensors").stat().st_size
    memcpy, found, versions = memcpy_bytes_per_second(size), [], itertools.count(1)
    for i in range(options.repeats + 1):
        for (number, fraction), transport in cases.items():
            row = {"engines": number, "fraction": fraction, "round": i}
            row |= await quiet_push(transport, next(versions), memcpy, options.bits)
            if i and number <= options.busy:
                async with decoded(endpoints[:number]) as clients:
                    row |= await busy_push(transport, next(versions), clients)
            if i:
                found.append(row)
    for transport in cases.values():
        await transport.close()
    print(json.dumps({"memcpy_gigabytes_per_second": memcpy / 1e9, "pushes": found}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["host", "learner"])
    for name, kind in (("address", str), ("folder", Path), ("index", int), ("bits", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--busy", type=int)
    parser.add_argument("--engines", type=int, nargs="*")
    parser.add_argument("--endpoints", nargs="*")
    options = parser.parse_args()
    if options.part == "host":
        asyncio.run(host(options.address, options.index, options.folder))
    else:
        asyncio.run(learner(options))


if __name__ == "__main__":
    main()
