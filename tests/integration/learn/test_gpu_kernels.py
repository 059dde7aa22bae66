"""The learner's kernels on one GPU, against the same on the CPU: `pytest -m gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.core.devices import why_no_gpu
from stages.learn.megatron.adam import use_fused_adam
from stages.learn.page_locked import empty_likes
from stages.learn.varlen import attend_varlen, can_attend, cut_varlen
from tests.flash_attention import varlen_attn

NO_GPU = why_no_gpu()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NO_GPU is not None, reason=NO_GPU or "")]
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (192, 128)])
def test_packed_attention_is_what_it_is_documented_to_be(
    dims: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tails that share a prompt, grouped-query heads; outputs and gradients."""
    if not can_attend(CUDA, torch.bfloat16, dims):
        pytest.skip("no kernel before Ampere")
    prompt = np.arange(70)
    keys = [prompt, np.r_[prompt, 70:200], np.r_[prompt, 200:231]]
    lengths = [70, 130, 31]
    shapes = ((231, 8, dims[0]), (231, 2, dims[0]), (231, 2, dims[1]))
    own = [torch.randn(shape).bfloat16() for shape in shapes]
    weight = torch.randn(231, 8, dims[1])

    def outcome(device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (t.to(device, dtype).requires_grad_() for t in own)
        out = attend_varlen(q, k, v, cut_varlen(lengths, keys, device), dims[0] ** -0.5)
        gradients = torch.autograd.grad((out.float() * weight.to(device)).sum(), (q, k, v))
        return [t.detach().cpu().float() for t in (out, *gradients)]

    got = outcome(CUDA, torch.bfloat16)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    for ours, theirs in zip(got, outcome(torch.device("cpu"), torch.float32), strict=True):
        assert (ours - theirs).abs().max() < 0.03 * theirs.abs().max()


def test_fused_adam_steps_as_on_the_cpu() -> None:
    def stepped(device: torch.device) -> torch.Tensor:
        p = torch.nn.Parameter(torch.linspace(-1, 1, 1000, device=device))
        optimizer = torch.optim.AdamW([p], lr=0.1)
        p.grad = torch.sin(p.detach())
        optimizer.step()
        use_fused_adam(optimizer)  # with the step counter of one that was not
        optimizer.step()
        return p.detach().cpu()

    assert torch.allclose(stepped(CUDA), stepped(torch.device("cpu")), atol=1e-6)


def test_host_memory_is_page_locked_and_bit_exact() -> None:
    like = [torch.randn(1000, 3, device=CUDA), torch.randn(7, device=CUDA).bfloat16()]
    for kept, t in zip(empty_likes(like, CUDA), like, strict=True):
        assert kept.is_pinned()
        kept.copy_(t)
        assert torch.equal(kept.to(CUDA, non_blocking=True), t)
