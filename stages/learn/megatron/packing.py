"""Micro-batches as the model takes them: samples packed end to end, the trained tokens listed flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import LearnerError
from pipeline.types import TrainSample
from stages.learn.megatron.attention import PackedSequences, Tail, cut_blocks, cut_tails


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMicroBatch:
    """t input tokens, N trained tokens, S samples. The inputs of a sample are all but its last token; a shared prompt is there once."""

    tokens: Tensor  # [1, t] int64
    positions: Tensor  # [1, t] int64, from 0 in every sample
    packing: PackedSequences
    rows: Tensor  # [N] int64: places in t whose next token is trained; samples that share a prompt share its last place
    targets: Tensor  # [N] int64: that next token
    advantages: Tensor  # [N] float32
    rollout_log_probs: Tensor  # [N] float32
    token_counts: Tensor  # [S] int64: trained tokens a sample
    sample_lengths: Tensor  # [S] int64: prompt and response
    staleness: Tensor  # [S] int64, policy versions
    sample_indices: Tensor  # [S] int64: TrainSample.index
    sample_weights: Tensor  # [S] float32: what each trained token weighs in a mean over tokens
    mean_weights: Tensor  # [S] float32: what the mean over a sample's trained tokens weighs in a mean over samples
    num_tokens: int  # prompt and response, before packing

    def weights_of_samples(self, *, per_token: bool) -> Tensor:
        """[S] to go with losses.token_weights of the same `per_token`."""
        return self.sample_weights if per_token else self.mean_weights

    @property
    def num_inputs(self) -> int:
        return self.tokens.shape[1]


def pack(samples: Sequence[TrainSample], device: torch.device, *, thd: bool, multiple_of: int = 1) -> PackedMicroBatch:
    """Pack samples. `thd`: mark for TransformerEngine's packed attention; else cut blocks for the local one, in which samples of
    a group share their prompt's tokens.

    `multiple_of`: pad the tokens to such a multiple with a sequence of its own (sequence parallelism splits evenly).
    Raises LearnerError for a sample whose first token would have to be predicted, or whose arrays disagree.
    """
    for s in samples:
        _check(s)
    families = [[s] for s in samples] if thd else _families(samples)
    families.sort(key=lambda f: (-len(f), -_stem(f).size))
    stems = [_stem(family) for family in families]
    starts = np.cumsum([0, *(len(stem) for stem in stems)])
    tails = _tails(families, starts)
    order = [s for family in families for s in family]
    num_inputs = int(starts[-1]) + sum(t.length for _, t in tails)
    pad = -num_inputs % multiple_of
    lengths = [len(stem) for stem in stems]
    masks = [np.asarray(s.loss_mask, dtype=bool) for s in order]
    inputs = [*stems, *(s.tokens[t.prefix : -1] for s, t in tails), np.zeros(pad, np.int64)]
    positions = [*(np.arange(n) for n in lengths), *(np.arange(t.length) + t.prefix for _, t in tails), np.zeros(pad, np.int64)]

    def flat(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=dtype)

    return PackedMicroBatch(
        tokens=flat(inputs, torch.int64)[None],
        positions=flat(positions, torch.int64)[None],
        packing=_packing(lengths, [t for _, t in tails], pad, device, thd),
        rows=flat(_rows(families, starts, tails), torch.int64),
        targets=flat([s.tokens[s.num_tokens - s.response_length :][m] for s, m in zip(order, masks, strict=True)], torch.int64),
        advantages=flat([s.advantages[m] for s, m in zip(order, masks, strict=True)], torch.float32),
        rollout_log_probs=flat([s.rollout_log_probs[m] for s, m in zip(order, masks, strict=True)], torch.float32),
        token_counts=torch.tensor([int(m.sum()) for m in masks], device=device),
        sample_lengths=torch.tensor([s.num_tokens for s in order], device=device),
        staleness=torch.tensor([s.staleness for s in order], device=device),
        sample_indices=torch.tensor([s.index for s in order], device=device),
        sample_weights=torch.tensor([s.weight for s in order], dtype=torch.float32, device=device),
        mean_weights=torch.tensor(
            [s.weight * (int(m.sum()) / s.norm_length if s.norm_length else 1.0) for s, m in zip(order, masks, strict=True)],
            dtype=torch.float32,
            device=device,
        ),
        num_tokens=sum(s.num_tokens for s in order),
    )


def _families(samples: Sequence[TrainSample]) -> list[list[TrainSample]]:
    """Samples of one group with the very same prompt."""
    found: dict[tuple[int, bytes], list[TrainSample]] = {}
    for s in samples:
        prompt = np.ascontiguousarray(s.tokens[: s.num_tokens - s.response_length], dtype=np.int64)
        found.setdefault((s.group_index, prompt.tobytes()), []).append(s)
    return list(found.values())


def _stem(family: Sequence[TrainSample]) -> np.ndarray:
    """What is packed once: the prompt of several samples, or all inputs of a single one."""
    s = family[0]
    return s.tokens[:-1] if len(family) == 1 else s.tokens[: s.num_tokens - s.response_length]


def _tails(families: Sequence[Sequence[TrainSample]], starts: np.ndarray) -> list[tuple[TrainSample, Tail]]:
    """Every sample that shares its prompt, end to end behind the stems, like beside like."""
    sharing = [(s, int(start)) for family, start in zip(families, starts[:-1], strict=True) if len(family) > 1 for s in family]
    sharing.sort(key=lambda x: (-(x[0].num_tokens - x[0].response_length).bit_length(), -x[0].response_length))
    tails, at = [], int(starts[-1])
    for s, start in sharing:
        tails.append((s, Tail(start, s.num_tokens - s.response_length, at, s.response_length - 1)))
        at += s.response_length - 1
    return tails


def _rows(families: Sequence[Sequence[TrainSample]], starts: np.ndarray, tails: Sequence[tuple[TrainSample, Tail]]) -> list[np.ndarray]:
    """For every sample: the places whose next token is trained. The first response token is predicted at the prompt's end."""
    behind = {id(s): tail.start - 1 for s, tail in tails}
    rows = []
    for family, start in zip(families, starts[:-1], strict=True):
        for s in family:
            trained = np.flatnonzero(s.loss_mask)
            end_of_prompt = int(start) + s.num_tokens - s.response_length - 1
            rows.append(np.where(trained == 0, end_of_prompt, trained + behind.get(id(s), end_of_prompt)))
    return rows


def _check(s: TrainSample) -> None:
    lengths = {len(s.loss_mask), len(s.advantages), len(s.rollout_log_probs)}
    if lengths != {s.response_length}:
        raise LearnerError(f"sample {s.index}: response of {s.response_length} tokens, but arrays of {sorted(lengths)}")
    if s.multimodal:
        raise LearnerError(f"sample {s.index} has multimodal_train_inputs ({', '.join(s.multimodal)}): use --train-backend fsdp for them")
    if s.num_tokens < 2 or s.response_length >= s.num_tokens:
        raise LearnerError(f"sample {s.index}: {s.num_tokens} tokens, {s.response_length} of them response: needs a prompt token ahead")


def _packing(lengths: list[int], tails: Sequence[Tail], pad: int, device: torch.device, thd: bool) -> PackedSequences:
    """`pad` tokens at the end are a sequence of their own."""
    top = max([*lengths, pad, *(t.prefix + t.length for t in tails)])
    if not thd:
        # Rounded up, so that the rotary table that Megatron caches by length is made for a few lengths only.
        top = -(-top // 64) * 64
        blocks = cut_blocks(lengths, device)
        cut = cut_tails([t for t in tails if t.length], device)
        return PackedSequences(qkv_format="sbhd", max_seqlen_q=top, max_seqlen_kv=top, blocks=blocks, tails=cut, pad=pad)
    cumulative = torch.from_numpy(np.cumsum([0, *lengths, *([pad] if pad else [])])).to(device=device, dtype=torch.int32)
    ends = {"cu_seqlens_q": cumulative, "cu_seqlens_kv": cumulative, "max_seqlen_q": top, "max_seqlen_kv": top}
    return PackedSequences(qkv_format="thd", **ends)
