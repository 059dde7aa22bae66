"""Megatron-core 0.16.1 and 0.19.2 without TransformerEngine and apex, on a CPU and on a GPU alike:
three spots that take them for granted.

A router names a function of TransformerEngine that was not imported; multi-latent attention asks
whether a layer is of a class that is not there; loading the distributed optimizer's state was
written for optimizers that count steps in the parameter group."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from pipeline.core.devices import has_gpu
from pipeline.core.errors import LearnerError

_MOE = "megatron.core.transformer.moe.moe_utils"
_LATENT = "megatron.core.transformer.multi_latent_attention"
_EXTENSION = "megatron.core.extensions.transformer_engine"
_DISTRIBUTED = "megatron.core.optimizer.distrib_optimizer"
_PATCHED = "_slipstream_patched"


def uses_transformer_engine() -> bool:
    """Are the layers TransformerEngine's? They are where it is installed and there is a GPU."""
    return importlib.util.find_spec("transformer_engine") is not None and has_gpu()


def install() -> None:
    """Mends the three spots, each where what it asks for is missing. It may be called more than
    once.

    Raises LearnerError for a TransformerEngine that is installed and cannot be imported: Megatron
    would do without, an order of magnitude slower, and say nothing."""
    if uses_transformer_engine():
        _check_import()
    else:
        _without_te_layers()
    distributed = importlib.import_module(_DISTRIBUTED)
    if not vars(distributed)["HAVE_APEX_OR_TE"]:
        _keep_own_steps(vars(distributed)["DistributedOptimizer"])


def _check_import() -> None:
    if vars(importlib.import_module(_EXTENSION))["HAVE_TE"]:
        return
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:
        raise LearnerError(
            f"TransformerEngine is installed, but cannot be imported ({type(error).__name__}:"
            f" {error}). Build it against this torch (`make setup-te`), or uninstall it"
        ) from error
    raise LearnerError(
        "TransformerEngine is installed, but Megatron-core cannot use it: its version is not one"
        " that this Megatron-core knows. Install the pinned one (`make setup-te`)"
    )


def _without_te_layers() -> None:
    vars(importlib.import_module(_MOE))["te_general_gemm"] = None
    vars(importlib.import_module(_LATENT))["HAVE_TE"] = False


def _keep_own_steps(cls: Any) -> None:
    """torch's Adam keeps a step tensor a parameter, and has no state at all before its first
    step."""
    if getattr(cls, _PATCHED, False):
        return
    import torch

    state_dict, load_state_dict = cls.state_dict, cls.load_state_dict
    set_states = cls._set_main_param_and_optimizer_states

    def is_torchs(self: Any) -> bool:
        return isinstance(self.optimizer, torch.optim.Adam)  # AdamW is one

    def state_dict_of_all(self: Any) -> Any:
        if is_torchs(self):
            for p in (p for group in self.optimizer.param_groups for p in group["params"]):
                if not self.optimizer.state[p]:
                    zeros = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                    step = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.optimizer.state[p].update(step=step, **zeros)
        return state_dict(self)

    def load_own_steps(self: Any, state: Any) -> None:
        load_state_dict(self, state)
        if is_torchs(self):
            for entry in self.optimizer.state.values():
                entry["step"] = entry["step"].clone()  # Megatron hands all of them the same tensor

    def set_states_but_steps(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        if not is_torchs(self):
            set_states(self, model_param, tensors)
            return
        group, place = self.model_param_group_index_map[model_param]
        main = self.optimizer.param_groups[group]["params"][place]
        own = {"param": main, **self.optimizer.state[main]}
        for name, value in tensors.items():
            if name in own and name != "step":
                own[name].copy_(value)

    cls.state_dict, cls.load_state_dict = state_dict_of_all, load_own_steps
    cls._set_main_param_and_optimizer_states = set_states_but_steps
    setattr(cls, _PATCHED, True)
