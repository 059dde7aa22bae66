"""Partial rollouts: a sample that a weight push caught in the middle holds tokens of several policy
versions."""

from __future__ import annotations

import numpy as np

from pipeline.core.types import Sample


def mask_offpolicy_tokens(sample: Sample) -> int:
    """Takes the loss from response tokens older than the sample's newest trained ones; returns how
    many lost it.

    slime masks what was generated before the last resume of a partial rollout; here pushes come
    between two tokens, and the newest version of the sample stands for that resume. At least one
    token keeps its loss where one had it. Writes `sample.loss_mask`."""
    n = sample.response_length
    mask = (
        np.ones(n, np.uint8) if sample.loss_mask is None else np.asarray(sample.loss_mask, np.uint8)
    )
    versions = [
        span.version for span in sample.weight_versions if mask[span.start : span.end].any()
    ]
    if len(set(versions)) < 2:
        return 0
    newest, kept = max(versions), np.zeros(n, np.uint8)
    for span in sample.weight_versions:
        if span.version == newest:
            kept[span.start : span.end] = mask[span.start : span.end]
    sample.loss_mask = kept.tolist()
    return int(mask.sum()) - int(kept.sum())
