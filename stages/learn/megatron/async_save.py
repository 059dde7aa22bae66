"""Saving while training goes on: the state is copied, a thread writes the copies, and they become a
checkpoint when every rank has written.

Megatron plans who writes what and merges the results (both take all ranks, and so the training
thread). Its own asynchronous callers fork or start processes, which a rank with Ray's, gloo's and
OpenMP's threads must not do. Here a thread of the rank calls Megatron's writer."""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor

from pipeline.core.errors import CheckpointError
from stages.learn import rendezvous
from stages.learn.hf_folder import make_durable, write_hf_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done for one folder of a snapshot on this rank."""

    path: Path
    write: Callable[[], None]  # in the thread; nothing of the model, no process group
    finish: Callable[[], None]  # afterwards, on every rank's own thread, in the same order


def torch_dist_job(state: dict[str, Any], path: Path) -> Job:
    """Copies what this rank writes of Megatron's sharded `state`.

    Every rank calls it; `path` is an empty folder.
    """
    if filesystem_async._results_queue is None:
        # Megatron's default is one between processes
        filesystem_async._results_queue = queue.Queue()
    request = dist_checkpointing.save(state, str(path), async_sharded_save=True)

    def finish() -> None:
        for function in request.finalize_fns:
            function()

    if request.async_fn is None:  # other ranks write
        return Job(path=path, write=lambda: None, finish=finish)
    transforms, (_, buckets, results) = request.async_fn.args[0], request.async_fn_args
    copies = [
        (file, key, (objects, [(item, _copy(t)) for item, t in tensors]))
        for file, key, (objects, tensors) in buckets
    ]

    def write() -> None:
        written = {}
        while copies:
            number, bucket = len(copies) - 1, copies.pop()
            written[number] = _write(transforms, number, bucket)
        results.put({number: written[number] for number in sorted(written)})

    return Job(path=path, write=write, finish=finish)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _write(transforms: Any, number: int, bucket: Any) -> Any:
    """Calls Megatron's writer, which ends with an fsync. Raises what it caught."""
    answer: queue.Queue[Any] = queue.Queue()
    counter: queue.Queue[int] = queue.Queue()
    counter.put(number)
    filesystem_async.FileSystemWriterAsync.write_preloaded_data(
        transforms, number, bucket, answer, counter, True
    )
    _, result = answer.get_nowait()
    if isinstance(result, Exception):
        raise result
    return result


def hf_job(weights: Iterator[tuple[str, Tensor]], source: Path, path: Path, *, write: bool) -> Job:
    """Copies whole weights on the rank with `write`, which takes as much host memory as the model
    has; every rank iterates them."""
    copies = [(name, _copy(tensor)) for name, tensor in weights if write]
    copies.reverse()

    def drained() -> Iterator[tuple[str, Tensor]]:
        while copies:
            yield copies.pop()

    return Job(
        path=path,
        write=(lambda: _hf(drained(), source, path)) if write else lambda: None,
        finish=lambda: None,
    )


def _hf(weights: Iterator[tuple[str, Tensor]], source: Path, path: Path) -> None:
    write_hf_folder(weights, source, path)


class SnapshotWriter:
    """Writes at most one snapshot at a time on this rank."""

    def __init__(self) -> None:
        self._jobs: Sequence[Job] = ()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(self, jobs: Sequence[Job]) -> None:
        """Starts writing; `finish` must have been called for what was begun before."""
        assert self._thread is None, "a save is under way"
        self._jobs, self._error = jobs, None
        self._thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        try:
            for job in self._jobs:
                job.write()
        except BaseException as error:  # told by finish(), on the rank's own thread
            self._error = error

    def written(self) -> bool:
        """Has this rank written its part (or failed to)? Does not wait."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> None:
        """Waits for the bytes and makes checkpoints of them; every rank calls it. Does nothing when
        nothing is under way.

        Raises CheckpointError on every rank when one could not write."""
        if self._thread is None:
            return
        self._thread.join()
        jobs, self._jobs, self._thread = self._jobs, (), None
        said = (
            f"rank {dist.get_rank()}: {type(self._error).__name__}: {self._error}"
            if self._error
            else ""
        )
        failed = [text for text in rendezvous.gather_over_world(said) if text]
        if failed:
            _empty(filesystem_async._results_queue)
            if dist.get_rank() == 0:
                for job in jobs:
                    shutil.rmtree(job.path, ignore_errors=True)
            raise CheckpointError(
                f"{jobs[0].path.parent}: the snapshot was not written: {'; '.join(failed)}. The one"
                " before is in force"
            )
        for job in jobs:
            job.finish()
        if dist.get_rank() == 0:
            for job in jobs:
                make_durable(job.path)
        dist.barrier()


def _empty(results: queue.Queue[Any]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            results.get_nowait()
