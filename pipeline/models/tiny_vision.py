"""`tiny:FILE.yaml` for models that see: a random Qwen-VL with the byte tokenizer and an image
processor, made on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError

VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MARKS = (VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)
# ChatML whose contents are text, or lists of text and images.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if"
    " message['content'] is string %}{{ message['content'] }}{% else %}{% for part in"
    " message['content'] %}{% if part['type'] == 'image' %}{{"
    " '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part['text'] }}{% endif %}{%"
    " endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\\n' }}{% endif %}"
)


def sees(shape: Mapping[str, Any]) -> bool:
    return "vision_config" in shape


def vision_tokens(tokenizer: Any) -> dict[str, int]:
    """The fields of the model's config that hold the ids of its image marks."""
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return {
        name: tokenizer.convert_tokens_to_ids(mark) for name, mark in zip(names, MARKS, strict=True)
    }


def save_processor(
    shape: Mapping[str, Any], image: Mapping[str, Any], tokenizer: Any, out: Path
) -> None:
    """Writes the image processor, and the tokenizer with it.

    `image`: min_pixels and max_pixels. Raises CheckpointError for other families."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    if shape["model_type"] not in ("qwen3_vl", "qwen3_vl_moe"):
        raise CheckpointError(
            f"model_type {shape['model_type']}: of the models that see, tiny:FILE.yaml makes"
            " qwen3_vl and qwen3_vl_moe"
        )
    vision = shape["vision_config"]
    patches = {"patch_size": vision["patch_size"], "merge_size": vision["spatial_merge_size"]}
    patches |= {"temporal_patch_size": vision["temporal_patch_size"]}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pixels = {
        "min_pixels": int(image.get("min_pixels", 256)),
        "max_pixels": int(image.get("max_pixels", 65536)),
    }
    tokenizer.chat_template = CHATML
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, **half, **pixels),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**patches, **half),
        chat_template=CHATML,
    )
    processor.save_pretrained(out)
