"""Virtual pipeline stages: how many there are, and micro-batches in the numbers that their schedule
takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.core.types import MicroBatch

# With any of these the layers are not dealt out evenly, and Megatron checks the numbers itself.
_UNEVEN = (
    "pipeline_model_parallel_layout",
    "num_layers_in_first_pipeline_stage",
    "num_layers_in_last_pipeline_stage",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
)


def resolve_virtual(
    values: Mapping[str, Any], layers_each: int | None, hf_folder: Path
) -> dict[str, Any]:
    """Megatron's flags with --num-layers-per-virtual-pipeline-stage turned into the number of
    stages. Raises ConfigError."""
    pipeline, virtual = (
        int(values.get("pipeline_model_parallel_size", 1)),
        values.get("virtual_pipeline_model_parallel_size"),
    )
    config = hf_folder / "config.json"
    if (
        (virtual is None and layers_each is None)
        or any(values.get(name) for name in _UNEVEN)
        or not config.is_file()
    ):
        return dict(values)
    layers = int(json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"])
    if layers_each is None:
        flag, stages, together = (
            f"--virtual-pipeline-model-parallel-size {virtual}",
            virtual,
            pipeline * int(virtual or 1),
        )
    else:
        flag, together = (
            f"--num-layers-per-virtual-pipeline-stage {layers_each}",
            pipeline * layers_each,
        )
        # all layers of a rank in one stage: an ordinary pipeline
        stages = layers // together if layers // together > 1 else None
    if layers % together:
        raise ConfigError(
            f"{flag} x --pipeline-model-parallel-size {pipeline} does not divide the {layers}"
            f" layers of {hf_folder}"
        )
    return {**values, "virtual_pipeline_model_parallel_size": stages}


def in_multiples(
    rank: tuple[MicroBatch, ...], multiple: int, *, fewest_samples: int
) -> tuple[MicroBatch, ...]:
    """The same samples of this rank, in micro-batches whose number is a multiple of
    `multiple`, equal on all ranks.

    Up to the next multiple by halving the largest; where a rank has too few samples for that, down,
    by joining the smallest, which may then hold more tokens than --max-tokens-per-gpu. A rank with
    fewer samples than `multiple` takes part with its shortest one again, without its loss.
    `fewest_samples`: that any rank has."""
    now = len(rank)
    if now % multiple == 0:
        return rank
    fewest = max(fewest_samples, multiple)
    count = min(now + -now % multiple, fewest // multiple * multiple)
    return _recut(list(_at_least(multiple, rank)), count)


def _at_least(count: int, rank: tuple[MicroBatch, ...]) -> tuple[MicroBatch, ...]:
    samples = [s for mb in rank for s in mb]
    shortest = min(samples, key=lambda s: (s.num_tokens, s.index))
    more = max(0, count - len(samples))
    return (*rank[:-1], (*rank[-1], *[shortest.without_loss()] * more))


def _recut(rank: list[MicroBatch], count: int) -> tuple[MicroBatch, ...]:
    while len(rank) < count:
        most = rank.pop(
            max((i for i, mb in enumerate(rank) if len(mb) > 1), key=lambda i: _tokens(rank[i]))
        )
        rank += [most[::2], most[1::2]]
    while len(rank) > count:
        rank.sort(key=_tokens, reverse=True)
        last = rank.pop()
        rank[-1] = rank[-1] + last
    return tuple(rank)


def _tokens(micro_batch: MicroBatch) -> int:
    return sum(s.num_tokens for s in micro_batch)
