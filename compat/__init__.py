"""What the pinned wheels lack on a machine without a GPU, and nothing else.

For every process of the environment: `compat.environment`, which `make setup` installs into it.

For engines, which are processes of their own and start further processes: `engine_environment()`
puts `compat/site` on their PYTHONPATH, whose sitecustomize calls `install_engine()` in each.

- `cudart`: SGLang pins host buffers through `torch.cuda.cudart()` even with `--device cpu`. Does
  nothing where CUDA is available.
- `forks`: where `FORKS` is in the environment, the processes of an engine are copies of its server
  instead of interpreters that import everything anew.
- `pauses`: a scheduler that is paused looks for its continuation without rest, on a core that the
  learner, or another engine's push, needs.
- `seeds`: SGLang heeds a request's own `sampling_seed` only with --enable-deterministic-inference,
  and that only with a few attention kernels. Adds torch_native to them, with which a request's
  noise is its own (its batch's rounding is not).
- `site/sgl_kernel`: SGLang imports names of its CUDA kernel wheel that it does not call on the
  dense torch_native path. Gives the real sgl_kernel where one is installed.

All of it is lazy: installing adds import hooks, and costs nothing until SGLang is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from compat.environment.hooks import ImportHook
from compat.versions import for_version

TESTED_SGLANG = "0.5.21"
ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "compat" / "site"
FORKS = "SLIPSTREAM_ENGINE_FORKS"


def install_engine() -> None:
    """Installs what SGLang needs on a CPU. It may be called more than once."""
    from compat.cudart import fill_in_cudart
    from compat.forks import fork_instead_of_spawn
    from compat.pauses import sleep_while_paused
    from compat.seeds import allow_seeds, hash_in_torch, without_invariant_kernels

    before = {
        "sglang": fill_in_cudart,
        "sglang.srt.server_args": allow_seeds,
        "sglang.srt.layers.sampler": hash_in_torch,
        "sglang.srt.model_executor.model_runner": without_invariant_kernels,
    }
    if os.environ.get(FORKS):
        before["sglang.srt.entrypoints.engine"] = fork_instead_of_spawn
    after = {"sglang.srt.managers.scheduler": sleep_while_paused}
    for pieces in (before, after):
        for module, piece in pieces.items():
            checked = for_version("sglang", TESTED_SGLANG, piece)
            hook = ImportHook(module, checked, after=pieces is after)
            if hook not in sys.meta_path and module not in sys.modules:
                sys.meta_path.insert(0, hook)


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy of `environment` in which SGLang and every process it starts have the pieces above."""
    path = [str(SITE), str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}
