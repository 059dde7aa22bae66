"""What the pinned wheels lack on a machine without a GPU, and nothing else.

- `torchvision_ops`: the PyPI wheel of torchvision is a CUDA build whose `_C.so` does not load
  beside a CPU torch; its operators
  are then undeclared and `import torchvision` fails. Does nothing where `_C.so` loads.
- `inert_triton`: SGLang decorates Triton kernels at import, and none runs on its CPU path. Does
nothing where Triton is installed.
- `cudart`: SGLang pins host buffers through `torch.cuda.cudart()` even with `--device cpu`. Does
nothing where CUDA is available.
- `seeds`: SGLang heeds a request's own `sampling_seed` only with --enable-deterministic-inference,
  and that only with a few attention
  kernels. Adds torch_native to them, with which a request's noise is its own (its batch's rounding
  is not).
- `site/sgl_kernel`: SGLang imports names of its CUDA kernel wheel that it does not call on the
  dense torch_native path. Gives the
  real sgl_kernel where one is installed.

All of it is lazy: installing only adds import hooks, so it costs nothing until torchvision, triton
or sglang is imported.

`install()` is for any process that imports transformers models (learner actors, driver, tests).
Engines are processes of their own which start further processes; `engine_environment()` puts
`compat/site` on their PYTHONPATH, whose sitecustomize calls `install_engine()` in each of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from compat.hooks import ImportHook, installed_version

TESTED_SGLANG = "0.5.21"
TESTED_TORCHVISION = "0.28.0"
ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "compat" / "site"


def install() -> None:
    """Make `import torchvision` (and with it transformers' models) work beside a CPU torch.

    Idempotent.
    """
    from compat.torchvision_ops import declare_operators

    _add(ImportHook("torchvision", "torchvision", TESTED_TORCHVISION, declare_operators))


def install_engine() -> None:
    """`install()` and what SGLang needs on a CPU.

    For engine processes: an inert Triton may confuse others. Idempotent.
    """
    from compat.cudart import fill_in_cudart
    from compat.inert_triton import InertTritonFinder
    from compat.seeds import allow_seeds, hash_in_torch, without_invariant_kernels

    install()
    # the hook below says so when sglang is imported
    if installed_version("sglang") != TESTED_SGLANG:
        _add(ImportHook("sglang", "sglang", TESTED_SGLANG, lambda: None))
        return
    _add(ImportHook("sglang", "sglang", TESTED_SGLANG, fill_in_cudart))
    _add(ImportHook("sglang.srt.server_args", "sglang", TESTED_SGLANG, allow_seeds))
    _add(ImportHook("sglang.srt.layers.sampler", "sglang", TESTED_SGLANG, hash_in_torch))
    _add(
        ImportHook(
            "sglang.srt.model_executor.model_runner",
            "sglang",
            TESTED_SGLANG,
            without_invariant_kernels,
        )
    )
    if not any(isinstance(finder, InertTritonFinder) for finder in sys.meta_path):
        sys.meta_path.append(InertTritonFinder())  # last: a real Triton wins


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy of `environment` in which SGLang and every process it starts have the pieces above."""
    path = [str(SITE), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def _add(hook: ImportHook) -> None:
    if hook not in sys.meta_path and hook.module not in sys.modules:
        sys.meta_path.insert(0, hook)
