"""Handles of memory: another process finds the bytes, nothing stays behind, and devices go by what
they are called in every process."""

from __future__ import annotations

import inspect
import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions

from pipeline.core.errors import WeightSyncError
from stages.publish.buckets import meta_of
from stages.publish.handles import by_uuid, payload
from stages.publish.lender import MemoryLender

CPU = torch.device("cpu")
SHM = Path("/dev/shm")
# What SGLang 0.5.21 lets a payload name, of what it could: see its SafeUnpickler.
HARMLESS = {
    "torch.multiprocessing.reductions rebuild_tensor",
    "torch.multiprocessing.reductions rebuild_typed_storage",
    "torch.multiprocessing.reductions rebuild_storage_filename",
    "torch.storage UntypedStorage",
    "torch Tensor",
    "torch Size",
    "torch uint8",
    "torch float32",
    "torch bfloat16",
    "types SimpleNamespace",
}
READER = """
import pickle, sys, torch
for line in sys.stdin:
    told = pickle.loads(bytes.fromhex(line))
    flat, metas = told["flattened_tensor"], told["metadata"]
    out = {m.name: flat[m.start_idx : m.end_idx].view(m.dtype).reshape(m.shape) for m in metas}
    found = {name: tensor.float().tolist() for name, tensor in out.items()}
    del told, flat, out
    print(found, flush=True)
"""


def weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(6.0).reshape(2, 3) * scale,
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16) * scale,
        "c": torch.full((3,), 7.0) * scale,
    }


def lender_of(tensors: dict[str, torch.Tensor]) -> MemoryLender:
    return MemoryLender(lambda: iter(tensors.items()), CPU)


def shared_files() -> set[str]:
    """Of this process."""
    return {path.name for path in SHM.glob(f"torch_{os.getpid()}_*")}


class Reader:
    """Another process, no child of multiprocessing's, that reads what it is told of."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self, told: bytes) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(told.hex() + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = eval(self.process.stdout.readline())
        return found

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_other_processes_read_what_is_lent_and_nothing_stays_behind() -> None:
    tensors = weights()
    lender = lender_of(tensors)
    (first, second) = lender.gather(32)
    tensors["a"].mul_(0)  # what was gathered is a copy
    readers = [Reader(), Reader()]
    try:
        for bucket, metas in enumerate((first, second)):
            told = lender.lend(lender.put(bucket), metas, len(readers))
            found = [reader.read(one) for reader, one in zip(readers, told, strict=True)]
            expected = {name: t.float().tolist() for name, t in weights().items()}
            assert found == [{name: expected[name] for name, _, _ in metas}] * 2
            lender.take_back()
        assert len(shared_files()) == 1  # one shelf for all buckets
        lender.close()
        assert not shared_files()
    finally:
        for reader in readers:
            reader.end()


def test_a_rank_passes_on_what_rank_0_has_put_into_shared_memory() -> None:
    first, other = lender_of(weights()), lender_of({})
    (metas,) = first.gather(1 << 20)
    (told,) = other.lend(first.put(0), metas, 1)
    reader = Reader()
    try:
        assert reader.read(told)["c"] == [7.0] * 3
    finally:
        reader.end()
    other.take_back()
    first.close()
    assert not shared_files()


def test_a_reader_that_never_comes_costs_no_more_than_the_shelf() -> None:
    lender = lender_of(weights())
    (metas,) = lender.gather(1 << 20)
    for _ in range(5):
        lender.lend(lender.put(0), metas, 3)
        lender.take_back()
    assert len(shared_files()) == 1
    for name in shared_files():  # torch's manager would, when this process has ended
        (SHM / name).unlink()


def test_a_payload_names_nothing_but_what_rebuilds_tensors() -> None:
    lender = lender_of(weights())
    (metas,) = lender.gather(1 << 20)
    (told,) = lender.lend(lender.put(0), metas, 1)
    assert set(_globals(told)) <= HARMLESS
    pickle.loads(told)  # so that it counts as read
    lender.close()


def test_a_failure_while_gathering_still_runs_the_collective_to_its_end() -> None:
    seen = []

    def all_of_them() -> Any:
        for name in "abc":
            seen.append(name)
            yield name, torch.zeros(2).to_sparse() if name == "a" else torch.zeros(2)

    with pytest.raises(WeightSyncError, match="could not be gathered"):
        MemoryLender(all_of_them, CPU).gather(1)
    assert seen == ["a", "b", "c"]


def test_what_is_not_there_cannot_be_lent() -> None:
    with pytest.raises(WeightSyncError, match="bucket 0 of 0"):
        lender_of(weights()).put(0)


def test_a_gpu_goes_by_its_uuid_which_an_engine_finds_under_its_own_number() -> None:
    """The learner's rank sees its device alone, as number 0; the engine sees two, in an order of
    its own. `recorded`: as torch 2.13 reduces a tensor on a GPU, its handle cut short."""
    learner_sees, engine_sees = ["GPU-b"], ["GPU-a", "GPU-b"]
    rest = (b"\x00handle", 2097152, 512, b"/torch_77_1_0", 3, b"\x00event", True, False)
    what = (torch.Tensor, torch.Size([4]), (1,), 0, torch.UntypedStorage, torch.uint8)
    recorded = (reductions.rebuild_cuda_tensor, (*what, 0, *rest))
    rebuild, args = by_uuid(recorded, learner_sees.__getitem__)
    assert rebuild is recorded[0]
    number = engine_sees.index(args[6])
    assert number == 1 and (*args[:6], 0, *args[7:]) == recorded[1]


def test_the_device_is_where_torch_puts_it() -> None:
    names = list(inspect.signature(reductions.rebuild_cuda_tensor).parameters)
    assert names[6] == "storage_device"


def test_tensors_on_a_gpu_are_pickled_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor that says it is on a GPU: what is written down has the UUID, and no number."""

    class OnGpu(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    def reduce(tensor: torch.Tensor) -> Any:
        return reductions.rebuild_cuda_tensor, (*map(str, range(6)), 5, b"handle")

    monkeypatch.setattr(reductions, "reduce_tensor", reduce)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: type("P", (), {"uuid": f"GPU-{i}"})
    )
    flat = torch.zeros(8, dtype=torch.uint8).as_subclass(OnGpu)
    told = payload(flat, [meta_of("w", torch.zeros(2))])
    written = [argument for _, argument, _ in pickletools.genops(told)]
    assert "GPU-5" in written and 5 not in written


def _globals(told: bytes) -> list[str]:
    """What a pickle names: "module name"."""
    words: list[str] = []
    out = []
    memo: list[str] = []
    for opcode, argument, _ in pickletools.genops(told):
        if opcode.name == "GLOBAL":
            out.append(str(argument))
        elif opcode.name == "STACK_GLOBAL":
            out.append(" ".join(words[-2:]))
        elif opcode.name in ("SHORT_BINUNICODE", "BINUNICODE"):
            words.append(str(argument))
        elif opcode.name == "MEMOIZE":
            memo.append(words[-1] if words else "")
        elif opcode.name in ("BINGET", "LONG_BINGET") and argument is not None:
            words.append(memo[argument])
    return out
