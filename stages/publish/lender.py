"""The learner's side of a push to engines on its own devices, in the process of one rank: the
weights wait in ordinary memory, and one bucket at a time is lent to the engines.

Rank 0 gathers, as for a broadcast, and puts a bucket into shared memory; every rank that has a
device in common with an engine's rank reads it from there. On a CPU it passes the name on, on a GPU
it copies the bucket to its device and passes a handle of that on. So the weights are on the host
once, and beside learner and engine a device holds one bucket, which is what there is room for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from pipeline.core.errors import WeightSyncError
from stages.publish.buckets import TensorMeta, meta_of, num_bytes, put
from stages.publish.handles import Shared, attach, payload, reference, share

CPU = torch.device("cpu")


class MemoryLender:
    """Every failure is a WeightSyncError, and leaves it usable.

    What `gather` took is a copy and stays until the next one, as with `BroadcastSender`."""

    def __init__(
        self, weights: Callable[[], Iterator[tuple[str, torch.Tensor]]], device: torch.device
    ) -> None:
        """`weights()`: see BroadcastSender. `device`: that engines have in common with this
        rank."""
        self._weights, self._device = weights, device
        self._buckets: list[torch.Tensor] = []
        self._shelf: torch.UntypedStorage | None = None  # rank 0: shared memory for one bucket
        self._lent: list[torch.Tensor] = []

    def gather(self, max_bucket_bytes: int) -> list[list[TensorMeta]]:
        """On rank 0: copies the current weights into buckets of at most `max_bucket_bytes` (of one
        tensor at least), which replace the last ones. A collective: the other ranks iterate their
        weights meanwhile."""
        self._buckets = []
        metas: list[list[TensorMeta]] = []
        weights = self._weights()
        with _failures("the weights could not be gathered"), contextlib.ExitStack() as always:
            always.callback(_exhaust, weights)  # the other ranks are in there too
            for bucket in _cut(weights, max_bucket_bytes):
                metas.append([meta_of(name, tensor) for name, tensor in bucket])
                self._buckets.append(_flatten(bucket))
        return metas

    def put(self, bucket: int) -> Shared:
        """On rank 0: the bucket in shared memory, in place of the last one."""
        if bucket >= len(self._buckets):
            raise WeightSyncError(f"nothing to lend: bucket {bucket} of {len(self._buckets)}")
        with _failures(f"bucket {bucket} could not be put into shared memory (/dev/shm)"):
            flat = self._buckets[bucket]
            if self._shelf is None or self._shelf.nbytes() < flat.nbytes:
                self._shelf = None  # first: two may not fit
                self._shelf = share(max(1, *(b.nbytes for b in self._buckets)))
            _bytes_of(self._shelf)[: flat.nbytes].copy_(flat)
            return reference(self._shelf)

    def lend(self, shared: Shared, metas: Sequence[TensorMeta], readers: int) -> list[bytes]:
        """What so many of the engines' ranks are told, one each, of the bucket that is in
        `shared`; they have it until `take_back`."""
        size = sum(num_bytes(meta) for meta in metas)
        with _failures("a bucket could not be lent"):
            whole = _bytes_of(self._shelf if self._shelf is not None else attach(shared))
            flat = whole[:size].to(self._device)
            self._lent.append(flat)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # it is there when the handle is
            return [payload(flat, metas) for _ in range(readers)]

    def take_back(self) -> None:
        """All who were lent something are through with it, or gone."""
        self._lent.clear()
        if self._device.type == "cuda":
            torch.cuda.ipc_collect()

    def close(self) -> None:
        self._lent, self._buckets, self._shelf = [], [], None


def _cut(
    tensors: Iterator[tuple[str, torch.Tensor]], max_bytes: int
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """As `split`, of what is known only while it is gathered."""
    bucket: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


def _flatten(bucket: Sequence[tuple[str, torch.Tensor]]) -> torch.Tensor:
    flat = torch.empty(sum(t.nbytes for _, t in bucket), dtype=torch.uint8)
    at = 0
    for _, tensor in bucket:
        at = put(tensor, flat, at)
    return flat


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _exhaust(weights: Iterator[object]) -> None:
    for _ in weights:
        pass


@contextlib.contextmanager
def _failures(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        # torch's out-of-memory errors are RuntimeErrors
        raise WeightSyncError(f"{what}: {type(error).__name__}: {error}") from error
