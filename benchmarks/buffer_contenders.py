"""The contenders of benchmarks/buffer.py that run in its own process: Slipstream's buffer, a bare
copy, verl's and slime's ways."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np

from benchmarks.buffer_load import COLUMNS, Load, Times, check_same, make_groups
from buffers.replay_buffer import ReplayBuffer
from configs.schema import AsyncConfig
from pipeline.core.types import Group, Sample
from pipeline.schedule.clock import RolloutClock

Durability = Literal["memory", "process", "fsync"]
Groups = Sequence[tuple[Sample, ...]]
FOR_EVER = 1 << 40


class Slipstream:
    """ReplayBuffer through its public methods. A put is the admission, the encoding and the write;
    a get is `take`, checksums and all.

    Batched: a rollout's groups are put concurrently, as its generators do, and taken together.
    Single: a rollout is one sample."""

    def __init__(
        self,
        directory: Path,
        durability: Durability,
        load: Load,
        *,
        single: bool,
        lists: bool = False,
    ) -> None:
        self._groups = make_groups(load, single=single, lists=lists)
        self._rollouts: list[Groups] = [[g] for g in self._groups] if single else [self._groups]
        self._clock = RolloutClock(
            rollout_batch_size=len(self._rollouts[0]),
            async_buffer_size=0,
            update_weights_interval=FOR_EVER,
            num_rollout=FOR_EVER,
        )
        config = AsyncConfig(
            async_buffer_size=0, update_weights_interval=FOR_EVER, buffer_durability=durability
        )
        self._buffer = ReplayBuffer(directory, config, self._clock)

    async def round(self, *, check: bool = False) -> Times:
        put_seconds = get_seconds = 0.0
        for groups in self._rollouts:
            start = perf_counter()
            await self._put(groups)
            middle = perf_counter()
            taken = await self._buffer.take(self._clock.num_trained)
            end = perf_counter()
            put_seconds, get_seconds = put_seconds + middle - start, get_seconds + end - middle
            if check:
                check_same([s for g in groups for s in g], [s for g in taken for s in g.samples])
            self._clock.trained(self._clock.num_trained)
        # what is trained on is removed, so that the disk does not fill
        self._buffer.committed(self._clock.num_trained, "benchmark")
        return Times(put=put_seconds, get=get_seconds)

    async def _put(self, groups: Groups) -> None:
        admitted = []
        for samples in groups:
            admission = self._buffer.try_admit()
            assert admission is not None, (
                "a rollout's groups are admitted at once: the one before is trained"
            )
            admitted.append(
                Group(
                    group_index=admission.group_index,
                    deadline=admission.deadline,
                    admitted_version=admission.policy_version,
                    samples=samples,
                )
            )
        if len(admitted) == 1:
            await self._buffer.put(admitted[0])
        else:
            await asyncio.gather(*map(self._buffer.put, admitted))

    def close(self) -> None:
        self._buffer.close()


class MemoryCopy:
    """The limit: the same bytes in one piece, copied by numpy into memory that is there and was
    touched before. Sources take turns, so that the processor's cache does not hold them all; each
    is copied at least once a round, as one copy is too short to time. `get` is a second round of
    copies."""

    _NUM_SOURCES = 16

    def __init__(self, load: Load, *, single: bool) -> None:
        self._count, size = (
            (load.num_singles, load.sample_bytes)
            if single
            else (1, load.num_samples * load.sample_bytes)
        )
        self._sources = [np.full(size, i, np.uint8) for i in range(self._NUM_SOURCES)]
        # not zeros: those would be mapped when copied to
        self._targets = [np.full(size, 255, np.uint8) for _ in range(self._NUM_SOURCES)]

    async def round(self, *, check: bool = False) -> Times:
        put = self._seconds()
        return Times(put=put, get=self._seconds())

    def _seconds(self) -> float:
        copies = max(self._count, self._NUM_SOURCES)
        start = perf_counter()
        for i in range(copies):
            np.copyto(self._targets[i % self._NUM_SOURCES], self._sources[i % self._NUM_SOURCES])
        return (perf_counter() - start) * self._count / copies

    def close(self) -> None: ...


class RayQueue:
    """verl's message queue: an actor with a deque of pickled samples, here a group a message. All
    of a round's calls are sent before the first is waited for, both ways (verl waits for every
    get)."""

    def __init__(self, load: Load, *, single: bool) -> None:
        import ray

        self._ray, self._groups, self._single = ray, make_groups(load, single=single), single
        self._queue = _queue_actor().remote()

    async def round(self, *, check: bool = False) -> Times:
        put_seconds = get_seconds = 0.0
        for groups in [[g] for g in self._groups] if self._single else [self._groups]:
            start = perf_counter()
            self._ray.get(
                [self._queue.put.remote(pickle.dumps(g, pickle.HIGHEST_PROTOCOL)) for g in groups]
            )
            middle = perf_counter()
            got = [
                pickle.loads(blob)
                for blob in self._ray.get([self._queue.get.remote() for _ in groups])
            ]
            end = perf_counter()
            put_seconds, get_seconds = put_seconds + middle - start, get_seconds + end - middle
            if check:
                check_same([s for g in groups for s in g], [s for g in got for s in g])
        return Times(put=put_seconds, get=get_seconds)

    def close(self) -> None:
        self._ray.kill(self._queue)


def _queue_actor() -> Any:
    """Defined here so that it is sent by value: the actor's process need not find this module."""
    import ray

    class Queue:
        def __init__(self) -> None:
            from collections import deque

            self._items: Any = deque()

        async def put(self, item: bytes) -> None:
            self._items.append(item)

        async def get(self) -> bytes:
            return self._items.popleft()

    return ray.remote(num_cpus=0)(Queue)


class ListAndRayPut:
    """slime's way: samples gather in a Python list, a rollout becomes a dict of columns of Python
    lists, which `ray.put` copies into the object store, and the learner `ray.get`s."""

    def __init__(self, load: Load, *, single: bool) -> None:
        import ray

        self._ray, self._groups, self._single = (
            ray,
            make_groups(load, single=single, lists=True),
            single,
        )

    async def round(self, *, check: bool = False) -> Times:
        put_seconds = get_seconds = 0.0
        for groups in [[g] for g in self._groups] if self._single else [self._groups]:
            start = perf_counter()
            buffer: list[Sample] = []
            for g in groups:
                buffer.extend(g)
            names = (*COLUMNS, "weight_versions")
            columns = {name: [getattr(s, name) for s in buffer] for name in names}
            columns["weight_versions"] = [
                [tuple(span) for span in spans] for spans in columns["weight_versions"]
            ]
            reference = self._ray.put(columns)
            middle = perf_counter()
            got = self._ray.get(reference)
            end = perf_counter()
            put_seconds, get_seconds = put_seconds + middle - start, get_seconds + end - middle
            if check:
                check_same(
                    buffer,
                    [
                        Sample(**dict(zip(names, row, strict=True)))
                        for row in zip(*got.values(), strict=True)
                    ],
                )
        return Times(put=put_seconds, get=get_seconds)

    def close(self) -> None: ...
