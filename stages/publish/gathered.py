"""One rank's part of the weights as flat buckets: filled tensor by tensor by one thread, taken by
another that sends them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.core.errors import WeightSyncError
from stages.publish.buckets import TensorMeta, meta_of, num_bytes, put

if TYPE_CHECKING:
    import torch


class Gathered:
    """All buckets, kept; or, with `at_once`, so many at a time, each once and in their order: the
    next one is filled when the one before it is done with."""

    def __init__(
        self,
        buckets: Sequence[Sequence[TensorMeta]],
        new: Callable[[int], torch.Tensor],
        *,
        at_once: int | None = None,
    ) -> None:
        """`new(num_bytes)`: memory for one bucket, uint8."""
        self._buckets, self._new, self._at_once = buckets, new, at_once
        self._flats: dict[int, torch.Tensor] = {}
        self._changed = threading.Condition()
        self._error: WeightSyncError | None = None
        self._ended = self._full = False
        self._held = 0
        self.peak_bytes = 0  # most that buckets and the tensor being copied took together

    def __len__(self) -> int:
        return len(self._buckets)

    def fill(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Runs `weights` to its end, also when it fails half-way or nobody wants more: other ranks
        are in there too. Raises WeightSyncError."""
        try:
            self._fill(weights)
            for name, _ in weights if self._full else ():
                raise WeightSyncError(f"{name} is one more than was said to be sent")
        except WeightSyncError as error:
            self._fail(error)
        except (RuntimeError, MemoryError) as error:
            # torch's out-of-memory errors are RuntimeErrors
            self._fail(
                WeightSyncError(
                    "the weights could not be gathered into buckets:"
                    f" {type(error).__name__}: {error}"
                )
            )
        finally:
            for _ in weights:
                pass
        if self._error is not None:
            raise self._error

    def _fill(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        for i, metas in enumerate(self._buckets):
            size = sum(map(num_bytes, metas))
            if not self._room():
                return
            flat, at = self._new(size), 0
            self._hold(size)
            for meta in metas:
                name, tensor = next(weights, ("nothing", None))
                if tensor is None or (found := meta_of(name, tensor)) != meta:
                    what = name if tensor is None else str(found)
                    raise WeightSyncError(f"{meta} was to be sent, and {what} came")
                self._hold(tensor.nbytes)
                at = put(tensor, flat, at)
                self._hold(-tensor.nbytes)
                del tensor  # before the next one is gathered
            _finish_copies(flat)
            with self._changed:
                self._flats[i] = flat
                self._changed.notify_all()
        with self._changed:
            self._full = True
            self._changed.notify_all()

    def take(self, bucket: int, timeout_seconds: float) -> torch.Tensor:
        """The bucket, when it is full. Raises WeightSyncError."""
        with self._changed:
            self._changed.wait_for(
                lambda: bucket in self._flats or self._error or self._ended or self._full,
                timeout_seconds,
            )
            if bucket in self._flats:
                return self._flats[bucket]
        raise self._error or WeightSyncError(
            f"nothing to send: bucket {bucket} of {len(self._buckets)}"
            + (
                ""
                if self._ended or self._full
                else f" was not gathered within {timeout_seconds:g} s"
            )
        )

    def done(self, bucket: int) -> None:
        """The bucket that was taken is sent."""
        if self._at_once is None:
            return
        with self._changed:
            self._hold(-self._flats.pop(bucket).nbytes)
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will be taken."""
        with self._changed:
            self._ended = True
            self._flats.clear()
            self._changed.notify_all()

    def release(self) -> list[torch.Tensor]:
        """The memory of the buckets, which are no more."""
        flats = list(self._flats.values())
        self.end()
        return flats

    def _room(self) -> bool:
        """Waits until one more bucket may be held; False when nobody wants it."""
        with self._changed:
            # the one that is to be filled is not among them yet
            at_once = self._at_once or len(self._buckets)
            self._changed.wait_for(lambda: self._ended or len(self._flats) < at_once)
            return not self._ended

    def _hold(self, size: int) -> None:
        with self._changed:
            self._held += size
            self.peak_bytes = max(self.peak_bytes, self._held)

    def _fail(self, error: WeightSyncError) -> None:
        with self._changed:
            self._error = error
            self._flats.clear()
            self._changed.notify_all()


def _finish_copies(flat: torch.Tensor) -> None:
    import torch

    if flat.is_cuda or flat.is_pinned():
        torch.cuda.current_stream().synchronize()
