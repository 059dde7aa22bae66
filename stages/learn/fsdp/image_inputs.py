"""What models that see need beside tokens: positions in three dimensions, and pixels in every
micro-batch of a step that has any."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.core.errors import CheckpointError, LearnerError
from pipeline.core.types import TrainSample


class Vision:
    """Qwen's family (and others whose models have get_rope_index): M-RoPE, image placeholders among
    the tokens."""

    def __init__(self, model: Any) -> None:
        self._inner, self._config = model.model, model.config
        if not hasattr(self._inner, "get_rope_index"):
            raise CheckpointError(
                f"{type(model).__name__}: of the models that see, those with M-RoPE (Qwen2-VL,"
                " Qwen2.5-VL, Qwen3-VL, GLM-4V) can be trained"
            )

    def positions(self, sample: TrainSample) -> np.ndarray:
        """[3, T - 1] of the sample's inputs: time, height, width.

        Source: Qwen2-VL, arXiv:2409.12191, section 2.1.
        """
        tokens = torch.from_numpy(sample.tokens[:-1].astype(np.int64))[None]
        grid = (sample.multimodal or {}).get("image_grid_thw")
        if grid is None:
            return np.broadcast_to(np.arange(tokens.shape[1]), (3, tokens.shape[1]))
        self._check(sample, tokens, grid)
        kinds = (tokens == self._config.image_token_id).int()
        positions, _ = self._inner.get_rope_index(
            tokens, mm_token_type_ids=kinds, image_grid_thw=torch.from_numpy(np.array(grid))
        )
        return np.asarray(positions[:, 0])

    def _check(self, sample: TrainSample, tokens: torch.Tensor, grid: np.ndarray) -> None:
        merged = (
            int(np.prod(grid, axis=-1).sum()) // self._config.vision_config.spatial_merge_size**2
        )
        there = int((tokens == self._config.image_token_id).sum())
        if merged != there:
            raise LearnerError(
                f"sample {sample.index}: {there} image placeholder tokens for {merged} image tokens"
                f" (image_grid_thw {grid.tolist()}): its tokens and multimodal_train_inputs must"
                " come from one call of the processor"
            )

    def blank(self) -> TrainSample:
        """The smallest image there is, without a trained token: every rank's vision tower must take
        part in every pass."""
        vision, side = self._config.vision_config, self._config.vision_config.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        arrays = {
            "pixel_values": np.zeros((side * side, width), np.float32),
            "image_grid_thw": np.array([[1, side, side]]),
        }
        tokens = np.array(
            [
                self._config.vision_start_token_id,
                self._config.image_token_id,
                self._config.vision_end_token_id,
            ]
        )
        none = np.zeros(1, np.float32)
        return TrainSample(
            index=-1,
            group_index=-1,
            tokens=tokens,
            response_length=1,
            loss_mask=np.zeros(1, np.uint8),
            rollout_log_probs=none,
            advantages=none,
            reward=0.0,
            staleness=0,
            weight=0.0,
            multimodal=arrays,
        )
