"""Stand-in for SGLang's CUDA kernel wheel on a CPU: names that SGLang 0.5.21 imports at module
level, none of which it calls on the dense, non-speculative torch_native path. Any other name is an
ImportError, as it should be. Where a real sgl_kernel is installed, importing this one gives the
real one."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

NAMES = (
    "assign_draft_cache_locs_contiguous_cpu",
    "assign_extend_cache_locs_cpu",
    "assign_req_to_token_pool_cpu",
    "build_tree_kernel_efficient_cpu",
    "copy_all_layer_kv_cache_cpu",
    "fill_accept_out_cache_loc_cpu",
    "fill_bonus_tokens_cpu",
    "verify_tree_greedy_cpu",
)
# Looked up in torch.ops while the Qwen-VL processor is imported, for other models of its file.
OPERATORS = (
    "fused_qk_gemma_rmsnorm_cpu",
    "fused_qk_gemma_rmsnorm_with_gate_cpu",
    "fused_qkvzba_split_reshape_cat_contiguous_cpu",
    "fused_sigmoid_mul_cpu",
)


def _missing(name):
    def kernel(*_args, **_kwargs):
        raise NotImplementedError(
            f"sgl_kernel.{name} was called, but this machine has no sgl_kernel: this SGLang option"
            " needs a GPU build"
        )

    kernel.__name__ = name
    return kernel


_here = str(Path(__file__).resolve().parent.parent)
_real = importlib.machinery.PathFinder.find_spec(
    "sgl_kernel", [p for p in sys.path if str(Path(p or ".").resolve()) != _here]
)
if _real is not None and _real.loader is not None:
    _module = sys.modules[__name__] = importlib.util.module_from_spec(_real)
    _real.loader.exec_module(_module)
else:
    globals().update({name: _missing(name) for name in NAMES})
    import torch

    _operators = torch.library.Library("sgl_kernel", "FRAGMENT")
    for _name in OPERATORS:  # without an implementation, a call is refused
        _operators.define(f"{_name}(Tensor x) -> Tensor")
