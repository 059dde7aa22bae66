"""Prompts with images: from the chat's text and its images to token ids, to what the model trains
on, and to what the engine is sent."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.core.errors import ConfigError, GenerateError
from pipeline.core.images import to_data_url
from pipeline.core.types import Sample

_NOT_TRAINED = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
)  # what the learner has, or makes itself, of the processor's outputs


class ImageFeatures(NamedTuple):
    tokens: tuple[int, ...]  # every image as many placeholders as the model sees of it
    arrays: Mapping[str, np.ndarray]  # pixel_values, image_grid_thw ...


class Vision:
    """The model's own image processor. Thread-safe as far as transformers' processors are."""

    def __init__(self, processor: Any) -> None:
        """`processor`: transformers' AutoProcessor of a model folder.

        Raises ConfigError for one without an image placeholder.
        """
        self._processor = processor
        self.image_token_id: int = getattr(processor, "image_token_id", None) or -1
        if self.image_token_id < 0:
            raise ConfigError(
                f"{type(processor).__name__} has no image placeholder token: images cannot be put"
                " into its prompts"
            )
        self._cached = lru_cache(maxsize=64)(self._see)  # all samples of a group have one prompt

    @classmethod
    def of_folder(cls, folder: Path) -> Vision:
        from transformers import AutoProcessor

        return cls(AutoProcessor.from_pretrained(str(folder)))

    def prepare(self, sample: Sample) -> None:
        """Sets tokens, multimodal_inputs (as data-URLs) and multimodal_train_inputs of a sample
        whose multimodal_inputs has images.

        Raises GenerateError where text and images do not fit, or an image cannot be read."""
        assert sample.multimodal_inputs is not None
        other = sorted(k for k, v in sample.multimodal_inputs.items() if v and k != "images")
        if other:
            raise GenerateError(
                f"multimodal_inputs has {', '.join(other)}: only images are supported"
            )
        if not isinstance(sample.prompt, str):
            raise GenerateError(
                "a prompt with images must be rendered text: add --apply-chat-template"
            )
        try:
            urls = tuple(to_data_url(image) for image in sample.multimodal_inputs["images"])
            seen = self._cached(sample.prompt, urls)
        except (ValueError, IndexError) as error:
            raise GenerateError(f"the prompt's images cannot be used: {error}") from error
        sample.multimodal_inputs = {"images": list(urls)}
        sample.multimodal_train_inputs = dict(seen.arrays)
        sample.tokens = list(seen.tokens)

    def _see(self, text: str, urls: tuple[str, ...]) -> ImageFeatures:
        out = self._processor(
            text=text, images=[open_image(url) for url in urls], return_tensors="np"
        )
        arrays = {k: np.asarray(v) for k, v in out.items() if k not in _NOT_TRAINED}
        return ImageFeatures(tuple(int(t) for t in out["input_ids"][0]), arrays)

    def for_engine(self, tokens: Sequence[int]) -> list[int]:
        """The ids with one placeholder for every image: SGLang's processor adds the rest."""
        pad = self.image_token_id
        return [t for i, t in enumerate(tokens) if t != pad or i == 0 or tokens[i - 1] != pad]

    def check_answer(self, tokens: Sequence[int]) -> None:
        """Raises GenerateError for an answer with a placeholder in it: as an input it would stand
        for an image that is not there."""
        if self.image_token_id in tokens:
            raise GenerateError(
                f"the model sampled the image placeholder (token {self.image_token_id}): such an"
                " answer cannot be trained on"
            )


def has_images(sample: Sample) -> bool:
    return bool(sample.multimodal_inputs and sample.multimodal_inputs.get("images"))


def engine_request(sample: Sample, vision: Vision | None) -> tuple[Sequence[int], dict[str, Any]]:
    """What EngineClient.generate is called with: input ids, and keyword arguments with the images
    where there are any."""
    if not has_images(sample):
        return sample.tokens, {}
    if vision is None:
        raise GenerateError(
            "the sample has images, but the model has no image processor (no vision_config in its"
            " config.json)"
        )
    assert sample.multimodal_inputs is not None
    return vision.for_engine(sample.tokens), {"images": sample.multimodal_inputs["images"]}


def open_image(url: str) -> Any:
    """The PIL image, RGB, of a data-URL. Raises ValueError."""
    from PIL import Image, UnidentifiedImageError

    head, _, data = url.partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise ValueError(f"{url:.40}: expected data:image/...;base64,...")
    try:
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError) as error:
        raise ValueError(f"{url:.40}: not a readable image: {error}") from error
