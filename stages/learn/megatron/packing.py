"""Micro-batches as the model takes them: samples packed end to end, the trained tokens listed
flat."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.core.errors import LearnerError
from pipeline.core.types import TrainSample
from stages.learn.blocks import cut_blocks
from stages.learn.megatron.attention import PackedSequences, Tail, cut_tails
from stages.learn.megatron.context import ContextShare, Layout, lay_out
from stages.learn.trained_tokens import FlatTrainedTokens, check_sample, trained_fields
from stages.learn.varlen import cut_varlen

FREE = -1  # in the place of an expert: nobody knows, so the router chooses


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMicroBatch(FlatTrainedTokens):
    """t input tokens, N trained tokens, S samples. The inputs of a sample are all but its last
    token; a shared prompt is there once.

    Under context parallelism t and n are this rank's; N and S are the micro-batch's, the same on
    all ranks that share it."""

    tokens: Tensor  # [1, t] int64
    positions: Tensor  # [1, t] int64, from 0 in every sample
    packing: PackedSequences
    # [n] int64: places in t whose next token is trained; samples that share a prompt share its last
    # place
    rows: Tensor
    # [n] int64: which of the N those are, where context-parallel ranks share the samples; None: n =
    # N, in order
    own: Tensor | None
    samples: tuple[TrainSample, ...]  # S, in packed order
    # [t, layers with experts, top-k] int16 on the host, FREE where unknown: to be replayed
    routed_experts: Tensor | None = None

    @property
    def num_inputs(self) -> int:
        return self.tokens.shape[1]


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence of the pack: tokens [first, last) of a sample, in `room` places from `start` on.

    With `first` > 0 they attend, beside each other, to the tokens before them, which are packed
    once from `prefix_start` on."""

    start: int
    sample: TrainSample
    first: int
    last: int
    room: int  # with padding
    prefix_start: int = 0


def pack(
    samples: Sequence[TrainSample],
    device: torch.device,
    *,
    thd: bool,
    varlen: bool = False,
    multiple_of: int = 1,
    share: ContextShare = ContextShare(),  # noqa: B008  # immutable
    expert_layers: Sequence[int] = (),
) -> PackedMicroBatch:
    """Packs samples, and takes this rank's share of the pack. `thd`: mark it for
    TransformerEngine's packed attention; else blocks (with `varlen`: sequences for one kernel) are
    cut for the local one, in which samples of a group share their prompt's tokens.

    `multiple_of`: pad the tokens to such a multiple with a sequence of its own (sequence
    parallelism splits evenly). Under context parallelism every sequence is padded
    (`ContextShare.unit`); tokens that pad are behind all others of their sequence, so none looks at
    them. `expert_layers`: the layers of the samples' routed experts to pack, where they have some.
    Raises LearnerError for a sample whose first token would have to be predicted, or whose arrays
    disagree."""
    for s in samples:
        check_sample(s)
        if s.multimodal:
            raise LearnerError(
                f"sample {s.index} has multimodal_train_inputs ({', '.join(s.multimodal)}): use"
                " --train-backend fsdp for them"
            )
    families = [[s] for s in samples] if thd else _families(samples)
    families.sort(key=lambda f: (-len(f), -_stem_length(f)))
    order = [s for family in families for s in family]
    segments, rows = _segments(families, share.unit)
    total = sum(segment.room for segment in segments)
    pad = -total % math.lcm(share.unit, share.size * multiple_of)
    layout = lay_out([segment.room for segment in segments], pad, share, by_sequence=thd)
    tokens, positions = np.zeros((2, total + pad), np.int64)
    for segment in segments:
        start, first, last = segment.start, segment.first, segment.last
        tokens[start : start + last - first] = segment.sample.tokens[first:last]
        positions[start : start + segment.room] = np.arange(segment.room) + first
    held = layout.held[share.rank]
    mine = layout.rank[rows] == share.rank

    def flat(parts: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=dtype)

    return PackedMicroBatch(
        tokens=flat([tokens[held]], torch.int64)[None],
        positions=flat([positions[held]], torch.int64)[None],
        packing=dataclasses.replace(
            _packing(segments, layout, pad, device, thd, varlen),
            positions=flat([positions[held]], torch.int64),
        ),
        rows=flat([layout.local[rows[mine]]], torch.int64),
        own=None if share.size == 1 else flat([np.flatnonzero(mine)], torch.int64),
        samples=tuple(order),
        routed_experts=(
            _experts(samples, segments, pad, held, expert_layers) if expert_layers else None
        ),
        **trained_fields(order, device),
    )


def _experts(
    samples: Sequence[TrainSample],
    segments: Sequence[Segment],
    pad: int,
    held: np.ndarray,
    layers: Sequence[int],
) -> Tensor | None:
    """[t, layers, top-k], of the places that this rank holds.

    Raises LearnerError when some samples have experts and some have none.
    """
    with_experts = [s for s in samples if s.routed_experts is not None]
    if not with_experts:
        return None
    if without := [s.index for s in samples if s.routed_experts is None]:
        raise LearnerError(
            f"samples {without[:5]} have no routed experts, sample {with_experts[0].index} has: all"
            " or none are expected"
        )
    total = sum(segment.room for segment in segments) + pad
    assert with_experts[0].routed_experts is not None
    out = np.full((total, len(layers), with_experts[0].routed_experts.shape[2]), FREE, np.int16)
    for segment in segments:
        assert segment.sample.routed_experts is not None
        known = segment.sample.routed_experts[segment.first : segment.last, list(layers)]
        out[segment.start : segment.start + len(known)] = known
    return torch.from_numpy(out[held])


def _families(samples: Sequence[TrainSample]) -> list[list[TrainSample]]:
    """The samples grouped by the prompt that they share."""
    found: dict[tuple[int, bytes, bytes], list[TrainSample]] = {}
    for s in samples:
        found.setdefault(s.prompt_key, []).append(s)
    return list(found.values())


def _stem_length(family: Sequence[TrainSample]) -> int:
    """How long the part is that is packed once: the prompt of several samples, or all inputs of a
    single one."""
    s = family[0]
    return s.num_tokens - 1 if len(family) == 1 else s.num_tokens - s.response_length


def _segments(
    families: Sequence[Sequence[TrainSample]], unit: int
) -> tuple[list[Segment], np.ndarray]:
    """The sequences of the pack: stems, then the tails of samples that share their prompt, like
    beside like.

    And the places [N] whose next token is trained, sample by sample. The first response token is
    predicted at the prompt's end."""
    segments: list[Segment] = []

    def add(sample: TrainSample, first: int, last: int, prefix_start: int = 0) -> Segment:
        start = segments[-1].start + segments[-1].room if segments else 0
        segments.append(
            Segment(start, sample, first, last, -(-(last - first) // unit) * unit, prefix_start)
        )
        return segments[-1]

    stems = [add(family[0], 0, _stem_length(family)).start for family in families]
    sharing = [
        (s, start)
        for family, start in zip(families, stems, strict=True)
        if len(family) > 1
        for s in family
    ]
    sharing.sort(
        key=lambda x: (
            -(x[0].num_tokens - x[0].response_length).bit_length(),
            -x[0].response_length,
        )
    )
    behind = {
        id(s): add(s, s.num_tokens - s.response_length, s.num_tokens - 1, start).start - 1
        for s, start in sharing
    }
    rows = []
    for family, start in zip(families, stems, strict=True):
        for s in family:
            trained = np.flatnonzero(s.loss_mask)
            end_of_prompt = start + s.num_tokens - s.response_length - 1
            rows.append(
                np.where(trained == 0, end_of_prompt, trained + behind.get(id(s), end_of_prompt))
            )
    return [segment for segment in segments if segment.room], np.concatenate(rows)


def _packing(
    segments: Sequence[Segment],
    layout: Layout,
    pad: int,
    device: torch.device,
    thd: bool,
    varlen: bool,
) -> PackedSequences:
    """`pad` tokens of the whole pack, at its end, are a sequence of their own."""
    top = max([pad, *(s.first + s.room for s in segments)])
    if thd:
        # Lengths of whole sequences with their padding: TransformerEngine divides by the
        # context-parallel size itself.
        ends = np.cumsum([0, *(s.room for s in segments), *([pad] if pad else [])])
        cumulative = torch.from_numpy(ends).to(device=device, dtype=torch.int32)
        both = {
            "cu_seqlens_q": cumulative,
            "cu_seqlens_kv": cumulative,
            "max_seqlen_q": top,
            "max_seqlen_kv": top,
        }
        return PackedSequences(qkv_format="thd", **both)
    # Rounded up, so that the rotary table that Megatron caches by length is made for a few lengths
    # only.
    top = -(-top // 64) * 64
    num_ranks = len(layout.held)
    shared = num_ranks > 1
    whole = [] if shared or varlen else [s.room for s in segments if not s.first]
    places = layout.gathered
    tails = []
    for chunk in layout.chunks:
        s = segments[chunk.sequence]
        if shared or s.first or varlen:
            seen = (
                np.arange(s.prefix_start, s.prefix_start + s.first),
                np.arange(s.start, s.start + chunk.offset + chunk.length),
            )
            tails.append(Tail(chunk.place, chunk.length, places[np.concatenate(seen)]))
    one = cut_varlen([t.length for t in tails], [t.keys for t in tails], device) if varlen else None
    return PackedSequences(
        qkv_format="sbhd",
        max_seqlen_q=top,
        max_seqlen_kv=top,
        blocks=cut_blocks(whole, device),
        tails=() if varlen else cut_tails(tails, device),
        varlen=one,
        pad=pad // num_ranks,
    )
