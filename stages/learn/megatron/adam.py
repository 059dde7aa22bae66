"""torch's Adam, where there is neither TransformerEngine's nor apex's: the fused one, on CPUs and
GPUs."""

from __future__ import annotations

import torch


def use_fused_adam(optimizer: torch.optim.Optimizer) -> None:
    """Makes torch's Adam or AdamW a single pass over the memory instead of about ten; on a GPU that
    also saves a copy of what it steps. The update is the same. Other optimizers stay as they are.

    To be called again after a state was loaded: the groups of a checkpoint bring flags of their
    own. Fused, step counters lie where their parameters are."""
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        return
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)
    for parameter, state in optimizer.state.items():
        if isinstance(step := state.get("step"), torch.Tensor):
            state["step"] = step.to(device=parameter.device, dtype=torch.float32)
