"""What an engine is told of weights that lie in memory it can reach itself: handles, not bytes.

On a GPU a CUDA IPC handle of memory on the device that the engine's rank shares with a rank of the
learner; on a CPU the name of shared memory. SGLang (`/update_weights_from_tensor`) takes a pickle
of it for every tensor-parallel rank.

A pickle is code for whoever loads it, so this one stays within one trust boundary: it is made by
our own learner's rank and loaded by our own engine, two processes of one run, of one user, on one
machine, and passes from one to the other over loopback. Nothing here loads one. SGLang loads no
others than those that name the few harmless functions that rebuild tensors, and to reach the
address to which they are sent is to reach an engine with all that it can be told.

For lack of GPUs, what is said of them here and in lender.py is tested with recorded handles and
faked devices alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.multiprocessing import reductions

from stages.publish.buckets import TensorMeta, num_bytes

DEVICE = 6  # which argument of torch's `rebuild_cuda_tensor` is the device

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and what it is called with


class Shared(NamedTuple):
    """Memory that every process of this machine can map by its name."""

    manager: bytes  # the socket of the process that removes it when all who map it are gone
    name: bytes  # of the file in /dev/shm, with a slash before it
    num_bytes: int


def share(num_bytes: int) -> torch.UntypedStorage:
    """New shared memory, of this process until it is dropped.

    By a file's name, not by a descriptor: descriptors are handed out to children of one process
    alone, which know its secret. It counts who has mapped it, and the last to go removes it; when
    someone is killed, torch's manager does, once all processes that had to do with it are gone."""
    return torch.UntypedStorage._new_using_filename_cpu(num_bytes)


def reference(storage: torch.UntypedStorage) -> Shared:
    """How others find it."""
    return Shared(*storage._share_filename_cpu_())


def attach(shared: Shared) -> torch.UntypedStorage:
    """The memory of another process, mapped into this one until it is dropped."""
    return torch.UntypedStorage._new_shared_filename_cpu(*shared)


def payload(flat: torch.Tensor, metas: Sequence[TensorMeta]) -> bytes:
    """What one rank of an engine is told of one bucket: where its bytes are (`flat`, uint8
    [bytes], on a GPU or in shared memory) and which tensors they are.

    To be loaded once, by one process: memory counts those whom it was promised to. `flat` must
    stay until it was loaded and used."""
    named = {"flattened_tensor": flat, "metadata": _layout(metas)}
    out = io.BytesIO()
    _HandlePickler(out).dump(named)
    return out.getvalue()


def by_uuid(reduced: Reduced, uuid: Callable[[int], str]) -> Reduced:
    """A tensor on a GPU as torch reduces it, with the device's UUID in place of its number, which
    is another one in another process. SGLang looks the UUID up among the devices it sees."""
    rebuild, args = reduced
    return rebuild, (*args[:DEVICE], uuid(args[DEVICE]), *args[DEVICE + 1 :])


def _layout(metas: Sequence[TensorMeta]) -> list[SimpleNamespace]:
    """SGLang's `FlattenedTensorMetadata`, which we do not import, by its fields."""
    out: list[SimpleNamespace] = []
    at = 0
    for name, dtype_name, shape in metas:
        num = num_bytes((name, dtype_name, shape))
        what = {"name": name, "shape": torch.Size(shape), "dtype": getattr(torch, dtype_name)}
        out.append(SimpleNamespace(**what, start_idx=at, end_idx=at + num, numel=num))
        at += num
    return out


class _HandlePickler(ForkingPickler):
    """As torch pickles tensors for other processes, but for two things: memory of the CPU goes by
    name whatever strategy this process has, and devices go by UUID."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.UntypedStorage):
            found = reference(obj)
            obj._shared_incref()  # whoever loads it takes one off
            return reductions.rebuild_storage_filename, (type(obj), *found)
        if isinstance(obj, torch.Tensor) and obj.is_cuda:
            return by_uuid(reductions.reduce_tensor(obj), _uuid_of)
        return NotImplemented


def _uuid_of(device: int) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)
