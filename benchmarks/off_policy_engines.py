"""Engines that outlive the runs of an experiment: to start one takes as long as half a short run.
Every run takes one for itself, as an engine that somebody else runs, and gives it its weights."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.engine.launch import Engine
from stages.engine.spec import EngineSpec

CONCURRENCY = 512  # of the command line's --sglang-server-concurrency
TOKENS_PER_REQUEST = 256  # prompts and answers of both tasks are shorter


class KeptEngines:
    """Some servers of one model's shape; whoever takes one has it alone."""

    def __init__(self, model: Path, count: int, folder: Path) -> None:
        self._engines = [
            Engine(
                EngineSpec(
                    index=index,
                    model_path=model,
                    log_path=folder / f"engine-{index}.log",
                    device="cpu",
                    dtype="float32",
                    concurrency=CONCURRENCY,
                    tokens_per_request=TOKENS_PER_REQUEST,
                )
            )
            for index in range(count)
        ]
        self._free: queue.SimpleQueue[Engine] = queue.SimpleQueue()

    def __enter__(self) -> KeptEngines:
        asyncio.run(_start(self._engines))
        for engine in self._engines:
            self._free.put(engine)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run(_stop(self._engines))

    @contextlib.contextmanager
    def one(self) -> Iterator[tuple[str, ...]]:
        """The flags that give a run one of them."""
        engine = self._free.get()
        try:
            address = engine.endpoint.removeprefix("http://")
            yield ("--rollout-external-engine-addrs", address)
        finally:
            self._free.put(engine)


async def _start(engines: Sequence[Engine]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for engine in engines:
                group.create_task(engine.start(0, 300.0))
    except BaseException:
        await _stop(engines)
        raise


async def _stop(engines: Sequence[Engine]) -> None:
    for engine in engines:
        await engine.stop()
