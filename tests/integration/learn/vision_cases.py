"""A tiny model that sees, and samples for it: random images of several sizes, random answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.types import Sample, TrainSample
from tests.conftest import ROOT


def make_folder(cache: Path) -> Path:
    from pipeline.models.resolve import resolve_checkpoint

    return resolve_checkpoint(f"tiny:{ROOT / 'configs/models/tiny-qwen3-vl.yaml'}", cache)


def make_samples(folder: Path) -> list[TrainSample]:
    """Four images of three sizes in three samples (one has two), and a text; responses of random
    tokens."""
    from PIL import Image

    from stages.generate.image_prompts import Vision

    vision, rng, noise = Vision.of_folder(folder), random.Random(0), np.random.default_rng(0)
    assert vision.image_token_id == 262
    see = "<|vision_start|><|image_pad|><|vision_end|>"
    out = []
    for i, sizes in enumerate([[(32, 32)], [(48, 32), (32, 32)], [(64, 64)], []]):
        images = [
            Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))
            for width, height in sizes
        ]
        sample = Sample(
            prompt=f"user {see * len(images)} what?",
            multimodal_inputs={"images": images},
            tokens=[5, 6, 7],
        )
        if images:
            vision.prepare(sample)
        n = 3 + i
        answer = [rng.randrange(256) for _ in range(n)]
        one = np.ones(n, np.float32)
        arrays: Any = sample.multimodal_train_inputs
        out.append(
            TrainSample(
                index=i,
                group_index=i,
                tokens=np.array([*sample.tokens, *answer]),
                response_length=n,
                loss_mask=np.ones(n, np.uint8),
                rollout_log_probs=-one,
                advantages=one * (1.0 if i % 2 else -0.5),
                reward=0.0,
                staleness=0,
                multimodal=arrays,
            )
        )
    return out
