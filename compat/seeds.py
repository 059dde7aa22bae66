"""Seeds of requests on a CPU: deterministic inference with torch's own kernels.

SGLang's own registration adds torch_native to the attention kernels that it knows for that mode.
Its batch-invariant matrix products are Triton kernels, which no CPU runs: without them a request's
noise is its own, but rounding still depends on who is in the batch."""

from __future__ import annotations

import importlib
from typing import Any

_MASK = 0xFFFFFFFF


def allow_seeds() -> None:
    choices: Any = importlib.import_module("sglang.srt.arg_groups.choices")
    choices.add_deterministic_attention_backend_choices(["torch_native"])


def without_invariant_kernels() -> None:
    operators: Any = importlib.import_module("sglang.srt.batch_invariant_ops")
    operators.enable_batch_invariant_mode = lambda *_args, **_kwargs: None


def hash_in_torch() -> None:
    """The noise of a seeded request comes from a hash that SGLang has as a Triton kernel, and in a
    CPU build that PyPI does not have."""
    module: Any = importlib.import_module("sglang.kernels.ops.sampling.murmur_hash")
    module.murmur_hash32 = murmur_hash32


def murmur_hash32(seed: Any, positions: Any, col_indices: Any) -> Any:
    """[rows, columns] int64, each a 32-bit hash of (seed, position, column). seed [rows] int64,
    positions [rows], col_indices [columns].

    Source: MurmurHash3_x86_32, Austin Appleby, public domain, over the four words (low and high
    half of the seed, position, column)."""
    import torch

    seed = seed.to(torch.int64)
    h = torch.zeros_like(seed)
    for word in (seed, seed >> 32, positions.to(torch.int64)):
        h = _mix(h, word & _MASK)
    h = _mix(h[:, None], col_indices.to(torch.int64)[None, :] & _MASK) ^ 16  # bytes
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = ((h ^ (h >> shift)) * factor) & _MASK  # int64 overflows, its lower half is right
    return h ^ (h >> 16)


def _mix(h: Any, word: Any) -> Any:
    word = (_rotated((word * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK
    return (_rotated(h ^ word, 13) * 5 + 0xE6546B64) & _MASK


def _rotated(x: Any, bits: int) -> Any:
    return ((x << bits) | (x >> (32 - bits))) & _MASK
