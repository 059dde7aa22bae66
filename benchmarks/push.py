"""What a weight push costs, over the number of engines.

    python -m benchmarks.push mock     # 1 to 1,024 servers that load nothing: control, and waves
    python -m benchmarks.push real     # SGLang servers and a Megatron learner, with and without
                                       # --no-overlap-push
    python -m benchmarks.push_links    # SGLang servers behind links of a given rate
    python -m benchmarks.push_delta    # what a step leaves to send, by --weight-transport delta

Everything is done `--repeats` times, in turns; kept are medians, least and most.

mock: a bucket takes BUCKET_SECONDS to reach a wave, however many are in it, so a push should take
waves x buckets x BUCKET_SECONDS: `over_model` is what it takes over that, in simulated time, where
any other call to an engine takes CALL_SECONDS and computing nothing (benchmarks/virtual_train.py).
`--push-wave-fraction` is 0.5 (`half`), 1 (`all`), or so small that engines go one by one
(`one_by_one`). What the driver computes is measured over HTTP: `cpu_ms` is its CPU time for an
engine, `http_seconds` a push in waves of half the pool. All servers are one process, which is what
1,024 of them on this machine wait for.

real: seconds of a push, from staging to the last confirmation; the longest pause of an engine; and
how long the learner's loop stood still for it (`trainer_seconds`), all medians of a run's pushes
without the first, which forms the groups. Everything shares this machine's cores, so a push and the
step beside it slow each other down: `seconds_per_rollout` has the sum of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import uvloop
from aiohttp import web

from benchmarks.common import keep, middle, spread, table, train
from benchmarks.virtual_train import run_jumping
from configs.schema import ClusterConfig
from pipeline.core.types import PreparedWeights
from stages.publish.control import EngineControl
from stages.publish.distributed import DistributedTransport

NUM_BUCKETS, TENSORS_PER_BUCKET = 4, 100
BUCKET_SECONDS = 0.25
CALL_SECONDS = 0.002
REAL = (
    *("--prompt-data", "reasoning_gym:spell_backward", "--rm-type", "random"),
    *("--rollout-max-response-len", "64", "--rollout-batch-size", "8"),
    *("--n-samples-per-prompt", "4", "--lr", "1e-6", "--use-tis", "--async-buffer-size", "2"),
)


class Engines:
    """Servers in one process, each under a path of its own, that answer SGLang's control
    endpoints."""

    def __init__(self) -> None:
        self._versions: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.Response:
        engine, path = request.match_info["engine"], request.match_info["path"]
        if path == "model_info":
            return web.json_response({"weight_version": self._versions[engine]})
        if path == "update_weights_from_distributed":
            body = await request.read()
            await asyncio.sleep(BUCKET_SECONDS)
            if b"weight_version" in body:  # the last one
                self._versions[engine] = json.loads(body)["weight_version"]
        return web.json_response({"success": True, "message": ""})

    async def serve(self, ready: Connection) -> None:
        app = web.Application()
        app.router.add_route("*", "/{engine}/{path}", self.answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        ready.send(runner.addresses[0][1])
        await asyncio.Event().wait()


def serve(ready: Connection) -> None:
    uvloop.run(Engines().serve(ready))


@contextlib.contextmanager
def served() -> Iterator[int]:
    """The port of the engines' process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


class Pool:
    """As much of a pool as a push asks for: all engines are up, none is asked anything."""

    def __init__(self, endpoints: list[str]) -> None:
        self.endpoints = endpoints
        self.on_restart: Any = None
        self.on_leave: Any = None

    def is_up(self, endpoint: str) -> bool:
        return True

    def begin_push(self, endpoint: str) -> None: ...
    def end_push(self, endpoint: str, version: int | None) -> None: ...
    def condemn(self, endpoint: str, reason: str) -> None:
        raise AssertionError(f"{endpoint}: {reason}")


class Sender:
    """The learner's side, which takes its time."""

    async def meeting_place(self, sender: int) -> tuple[str, int]:
        return "127.0.0.1", 1

    async def join(self, *where: Any) -> None: ...
    async def leave(self, sender: int, group_name: str) -> None: ...
    async def prepare(self, max_bucket_bytes: int, max_copy_bytes: int | None) -> PreparedWeights:
        tensor = ("model.layers.0.self_attn.q_proj.weight", "bfloat16", [4096, 4096])
        return PreparedWeights(buckets={0: [[tensor] * TENSORS_PER_BUCKET] * NUM_BUCKETS})

    def sending(self) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext()

    async def broadcast(self, sender: int, group_name: str, bucket: int) -> None:
        await asyncio.sleep(BUCKET_SECONDS)


async def measure(port: int, number: int, fraction: float) -> tuple[float, float]:
    """Seconds of a push whose groups are there already, and CPU seconds of this process."""
    pool: Any = Pool([f"http://127.0.0.1:{port}/{i}" for i in range(number)])
    sender: Any = Sender()
    transport = DistributedTransport(pool, sender, ClusterConfig(push_wave_fraction=fraction))
    await transport.push(1)
    began, worked = time.monotonic(), time.process_time()
    pushed = await transport.push(2)
    took, cpu = time.monotonic() - began, time.process_time() - worked
    assert pushed.num_engines == number
    await transport.close()
    return took, cpu


class SimulatedControl(EngineControl):
    """An engine that answers without HTTP."""

    def __init__(self, endpoint: str, versions: dict[str, str]) -> None:
        super().__init__(cast(Any, None), endpoint)
        self._versions = versions

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | bytes | None, seconds: float
    ) -> dict[str, Any]:
        receives = path == "update_weights_from_distributed"
        await asyncio.sleep(BUCKET_SECONDS if receives else CALL_SECONDS)
        if isinstance(body, bytes) and b"weight_version" in body:
            self._versions[self.endpoint] = json.loads(body)["weight_version"]
        return {"weight_version": self._versions.get(self.endpoint)}


class SimulatedTransport(DistributedTransport):
    versions: dict[str, str]

    def _control(self, endpoint: str) -> EngineControl:
        return SimulatedControl(endpoint, self.versions)


async def simulate(number: int, fraction: float) -> float:
    """Simulated seconds of a push whose groups are there already."""
    pool: Any = Pool([f"mock://{i}" for i in range(number)])
    sender: Any = Sender()
    cluster = ClusterConfig(push_wave_fraction=fraction)
    transport = SimulatedTransport(pool, sender, cluster)
    transport.versions = {}
    await transport.push(1)
    began = asyncio.get_running_loop().time()
    await transport.push(2)
    return asyncio.get_running_loop().time() - began


def mock_turn(port: int, number: int) -> dict[str, float]:
    took, cpu = uvloop.run(measure(port, number, 0.5))
    turn = {"http_seconds": took, "cpu_ms": 1000 * cpu / number}
    for name, fraction, waves in (
        ("half", 0.5, min(number, 2)),
        ("all", 1.0, 1),
        ("one_by_one", 1 / number, number),
    ):
        took = run_jumping(simulate(number, fraction))
        model = waves * NUM_BUCKETS * BUCKET_SECONDS
        turn |= {f"{name}_seconds": took, f"{name}_over_model": took / model}
    return turn


def mock(options: argparse.Namespace) -> dict[str, Any]:
    turns: dict[int, list[dict[str, float]]] = {}
    with served() as port:
        for _ in range(options.repeats):
            for number in options.engines or (1, 2, 4, 16, 64, 256, 1024):
                turns.setdefault(number, []).append(mock_turn(port, number))
                print(number, turns[number][-1], flush=True)
    rows = [{"engines": number} | medians(found) for number, found in turns.items()]
    return {"bucket_seconds": BUCKET_SECONDS, "num_buckets": NUM_BUCKETS, "pushes": rows}


def medians(turns: list[dict[str, float]]) -> dict[str, Any]:
    return {"turns": len(turns)} | {n: spread([turn[n] for turn in turns]) for n in turns[0]}


def real_turn(options: argparse.Namespace, number: int, overlap: bool) -> dict[str, float]:
    run = train(
        *REAL,
        *("--hf-checkpoint", f"tiny:{options.model}", "--rollout-num-gpus", str(number)),
        *("--num-rollout", str(options.num_rollout)),
        "--overlap-push" if overlap else "--no-overlap-push",
    )
    rows, pushes = run["train"], run["push"][1:]
    span = rows[-1]["wall_seconds"] - rows[0]["wall_seconds"]
    step = statistics.median(r["step_seconds"] for r in rows[1:])
    lost = statistics.median(p["trainer_seconds"] for p in pushes)
    return {
        "push_seconds": statistics.median(p["seconds"] for p in pushes),
        "stall_seconds": statistics.median(p["stall_seconds"] for p in pushes),
        "trainer_seconds": lost,
        "step_seconds": step,
        "lost_over_step": lost / step,
        "seconds_per_rollout": span / (len(rows) - 1),
        "mebibytes": pushes[-1]["num_bytes"] / 2**20,
    }


def real(options: argparse.Namespace) -> dict[str, Any]:
    turns: dict[tuple[int, bool], list[dict[str, float]]] = {}
    for _ in range(options.repeats):
        for number in options.engines or (1, 2, 4):
            for overlap in (False, True):
                turn = real_turn(options, number, overlap)
                turns.setdefault((number, overlap), []).append(turn)
                print(number, overlap, turn, flush=True)
    rows = [{"engines": n, "overlap": o} | medians(found) for (n, o), found in turns.items()]
    return {"model": options.model, "num_rollout": options.num_rollout, "pushes": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["mock", "real"])
    parser.add_argument("--engines", type=int, nargs="*")
    parser.add_argument("--num-rollout", type=int, default=16, help="real only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--model", default="configs/models/quickstart-qwen3.yaml", help="real only: a shape"
    )
    options = parser.parse_args()
    found = {"mock": mock, "real": real}[options.mode](options)
    shown = list(found["pushes"][0])
    table(shown, [[middle(row.get(name, "")) for name in shown] for row in found["pushes"]])
    name = "push_mock" if options.mode == "mock" else f"push_{Path(options.model).stem}"
    keep(name.replace("-", "_"), found)


if __name__ == "__main__":
    main()
