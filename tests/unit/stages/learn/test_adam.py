"""torch's Adam as it steps: fused, also with the state of one that was not."""

from __future__ import annotations

import pytest
import torch

from stages.learn.megatron.adam import use_fused_adam


def stepped(kind: type[torch.optim.Optimizer], *, fused: bool, steps: int) -> torch.Tensor:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = kind([p], lr=0.1, weight_decay=0.01)  # type: ignore[call-arg]
    if fused:
        use_fused_adam(optimizer)
    for i in range(steps):
        p.grad = torch.sin(p.detach() * (i + 1))
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_update_is_the_same(kind: type[torch.optim.Optimizer]) -> None:
    plain, fused = (stepped(kind, fused=fused, steps=3) for fused in (False, True))
    assert torch.allclose(plain, fused, atol=1e-6)


def test_a_state_that_was_loaded_is_stepped_fused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    old = torch.optim.AdamW([p], foreach=True)
    p.grad = torch.ones(3)
    old.step()
    new = torch.optim.AdamW([p])
    use_fused_adam(new)
    new.load_state_dict(old.state_dict())
    assert not new.param_groups[0]["fused"]  # the saved group's
    new.state[p]["step"] = torch.tensor(1, dtype=torch.int64)
    use_fused_adam(new)
    group, step = new.param_groups[0], new.state[p]["step"]
    assert group["fused"] and not group["foreach"]
    assert step.dtype == torch.float32 and step.device == p.device
    new.step()
    assert new.state[p]["step"] == 2


def test_step_counters_are_where_their_parameters_are() -> None:
    p = torch.nn.Parameter(torch.ones(3, device="meta"))
    optimizer = torch.optim.AdamW([p])
    optimizer.state[p]["step"] = torch.tensor(4.0)
    use_fused_adam(optimizer)
    assert optimizer.state[p]["step"].device.type == "meta"


def test_others_are_left_alone() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    before = [dict(group) for group in optimizer.param_groups]
    use_fused_adam(optimizer)
    assert [dict(group) for group in optimizer.param_groups] == before
