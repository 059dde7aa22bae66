"""Packed sequences in one FlashAttention call. The kernel, which needs a GPU, is stood in for by
what it is documented to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.learn.varlen import attend_varlen, can_attend, cut_varlen
from tests.flash_attention import lower_right, varlen_attn

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    made = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=made, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("dims", [(8, 8), (12, 8), (8, 12)])
def test_tails_look_at_their_prefix_and_at_themselves(dims: tuple[int, int]) -> None:
    """A prompt of 3 tokens once, then the tails of two samples, of 4 and 1 tokens."""
    q, k, v = random((8, 4, dims[0]), (8, 2, dims[0]), (8, 2, dims[1]))
    prompt = np.arange(3)
    keys = [prompt, np.r_[prompt, 3:7], np.r_[prompt, 7:8]]
    cut = cut_varlen([3, 4, 1], keys, CPU)
    assert cut.queries.dtype == cut.keys.dtype == torch.int32 and cut.places is not None
    assert (cut.max_queries, cut.max_keys) == (4, 7)
    got = attend_varlen(q, k, v, cut, 0.3)
    starts = [0, 3, 7, 8]
    parts = []
    for i, own in enumerate(keys):
        a = q[starts[i] : starts[i + 1]]
        heads = (x.transpose(0, 1) for x in (a, k[own], v[own]))
        mask = lower_right(len(a), len(own))
        out = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=0.3, enable_gqa=True)
        parts.append(out.transpose(0, 1))
    want = torch.cat(parts)
    assert got.shape == (8, 4, dims[1]) and torch.allclose(got, want, atol=1e-6)
    weight = torch.randn_like(want)
    gradients = [torch.autograd.grad((x * weight).sum(), (q, k, v)) for x in (got, want)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_sequences_of_their_own_are_not_copied() -> None:
    cut = cut_varlen([3, 5], [np.arange(3), np.arange(3, 8)], CPU)
    assert cut.places is None and cut.keys.tolist() == cut.queries.tolist() == [0, 3, 8]


def test_long_groups_take_memory_by_their_tokens_and_not_their_square() -> None:
    """Two samples of 16k tokens with one prompt: their mask would take half a gigabyte."""
    prompt, tail = np.arange(1024), 15 * 1024
    keys = [prompt, *(np.r_[prompt, start : start + tail] for start in (1024, 1024 + tail))]
    cut = cut_varlen([1024, tail, tail], keys, CPU)
    tensors = (cut.queries, cut.keys, cut.places)
    assert sum(t.nbytes for t in tensors if t is not None) < 1 << 19


@pytest.mark.parametrize(
    ("device", "dtype", "dims", "capability", "there"),
    [
        ("cuda", torch.bfloat16, (128, 128), (9, 0), True),
        ("cuda", torch.float16, (192, 128), (8, 0), True),
        ("cuda", torch.bfloat16, (576, 512), (9, 0), False),
        ("cuda", torch.float32, (64, 64), (9, 0), False),
        ("cuda", torch.bfloat16, (64, 64), (7, 5), False),
        ("cpu", torch.bfloat16, (64, 64), (9, 0), False),
    ],
)
def test_where_there_is_a_kernel(
    device: str,
    dtype: torch.dtype,
    dims: tuple[int, int],
    capability: tuple[int, int],
    there: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(_: Any) -> tuple[int, int]:
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", asked)
    assert can_attend(torch.device(device), dtype, dims) is there


def test_torch_has_the_kernel_with_these_names() -> None:
    """Its shapes on meta tensors: names and order of arguments are torch's."""
    import importlib

    real = importlib.reload(importlib.import_module("torch.nn.attention.varlen")).varlen_attn
    q, k = torch.empty(8, 4, 16, device="meta"), torch.empty(11, 2, 16, device="meta")
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    out = real(q, k, k, ends, ends, 5, 7, scale=0.3, window_size=(-1, 0), enable_gqa=True)
    assert out.shape == q.shape
