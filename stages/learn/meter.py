"""What a step costs: the most memory that it held, tokens and operations a second. Every backend
uses it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.core.batch_share import BatchShare
from pipeline.core.flops import TRAINING_PASSES, Cost, peak_tflops

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes at the peak since `restart`: torch's tensors on a GPU, on a CPU the whole process
    (resident memory)."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def restart(self) -> None:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        # a container may forbid it: then the peak is that of the process's life
        with contextlib.suppress(OSError):
            # proc(5): sets the high-water mark of resident memory to what is resident now
            _CLEAR.write_text("5")

    def read(self) -> int:
        """The peak in bytes; 0 where the system does not report it."""
        if self._cuda:
            return int(torch.cuda.max_memory_allocated())
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10
        return 0


class StepMeter:
    """The meter of one rank. Call `restart` when a step begins and `metrics` when it is done."""

    def __init__(
        self,
        device: torch.device,
        cost: Cost,
        num_devices: int,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cost, self._num_devices, self._now = cost, num_devices, now
        self._memory = PeakMemory(device)
        self._peak = (
            peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        )
        self._started = now()

    def restart(self) -> None:
        self._memory.restart()
        self._started = self._now()

    @property
    def peak_bytes(self) -> int:
        """The peak of this rank's memory since `restart`."""
        return self._memory.read()

    def work(self, batch: BatchShare) -> tuple[int, float]:
        """(tokens, operations of a forward pass) of this rank's samples."""
        micro_batches = [mb for step in batch.steps for mb in step.micro_batches]
        tokens = sum(s.num_tokens for mb in micro_batches for s in mb)
        return tokens, sum(map(self._cost.of_micro_batch, micro_batches))

    def metrics(
        self, tokens: int, operations: float, *, extra_passes: float = 0.0
    ) -> dict[str, float]:
        """Of all ranks' work together: num_tokens, seconds, tokens_per_second_per_device,
        model_tflops (1e12 operations a second and device), and mfu where the device's peak is
        known.

        `extra_passes`: forward passes without a backward one (old and reference log-probs), over
        the whole batch. Operations are the model's: what is computed again to save memory does not
        count. mfu: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B."""
        seconds = max(self._now() - self._started, 1e-9)
        passes = TRAINING_PASSES + extra_passes
        tflops = passes * operations / seconds / self._num_devices / 1e12
        return {
            "num_tokens": float(tokens),
            "seconds": seconds,
            "tokens_per_second_per_device": tokens / seconds / self._num_devices,
            "model_tflops": tflops,
            **({"mfu": tflops / self._peak} if self._peak else {}),
        }
