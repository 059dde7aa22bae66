"""Handles of memory on a GPU, as SGLang itself takes them apart. There is no GPU here: what torch
says of a tensor on one was written down, and devices are faked on both sides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions

from compat import engine_environment
from stages.publish.handles import payload

pytestmark = pytest.mark.slow

ENGINE = """
import json, sys, types
import torch
from torch.multiprocessing import reductions
from sglang.srt.utils.common import MultiprocessingSerializer
from sglang.srt.utils.patch_torch import monkey_patch_torch_reductions

seen = ["GPU-a", "GPU-b"]
torch.cuda.device_count = lambda: len(seen)
torch.cuda.get_device_properties = lambda i: types.SimpleNamespace(uuid=seen[i])
monkey_patch_torch_reductions()
reductions._rebuild_cuda_tensor_original = lambda *args: args
told = MultiprocessingSerializer.deserialize(bytes.fromhex(sys.argv[1]))
device, handle = told["flattened_tensor"][6:8]
metas = [(m.name, list(m.shape), str(m.dtype), m.start_idx, m.end_idx) for m in told["metadata"]]
print("RESULT", json.dumps([device, handle.hex(), metas]))
"""
HANDLE = bytes(range(64))


class OnGpu(torch.Tensor):
    is_cuda = True  # type: ignore[assignment]


def written_down(tensor: torch.Tensor) -> Any:
    """How torch 2.13 reduces 16 bytes on the only device that a rank of the learner sees."""
    storage = (HANDLE, 2 << 20, 512)
    counters = (False, b"/torch_77_1_0", 3, bytes(64), True)
    what = (torch.Tensor, torch.Size([16]), (1,), 0, torch.storage.TypedStorage, torch.uint8)
    return reductions.rebuild_cuda_tensor, (*what, 0, *storage, *counters)


def test_sglang_finds_the_device_of_a_learner_rank_among_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the learner's number 0 and the engine's number 1."""
    monkeypatch.setattr(reductions, "reduce_tensor", written_down)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda i: type("Device", (), {"uuid": ["GPU-b"][i]})
    )
    flat = torch.zeros(16, dtype=torch.uint8).as_subclass(OnGpu)
    told = payload(flat, [("a", "float32", [2, 1]), ("b", "bfloat16", [4])])
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, told.hex()],
        env=engine_environment({**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT"))
    device, handle, metas = json.loads(line.removeprefix("RESULT"))
    assert (device, handle) == (1, HANDLE.hex())
    assert metas == [["a", [2, 1], "torch.float32", 0, 8], ["b", [4], "torch.bfloat16", 8, 16]]
