"""The two CUDA runtime calls that SGLang makes even with `--device cpu`, as successful no-ops on
machines without CUDA."""

from __future__ import annotations


class NoCudart:
    """`torch.cuda.cudart()`: pageable memory is all there is on a CPU, so pinning it registers
    nothing."""

    def cudaHostRegister(self, *_: object) -> int:  # noqa: N802
        return 0

    def cudaHostUnregister(self, *_: object) -> int:  # noqa: N802
        return 0

    def cudaGetErrorString(self, _: int) -> str:  # noqa: N802
        return ""


def fill_in_cudart() -> None:
    """Called right before `import sglang`: routed experts pin a host buffer, /weights_checker waits
    for the device."""
    import torch

    if not torch.cuda.is_available():
        torch.cuda.cudart = NoCudart
        torch.cuda.synchronize = lambda device=None: None
