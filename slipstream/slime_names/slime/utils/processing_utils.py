"""Tokenizers, and images for engines."""

from __future__ import annotations

from typing import Any

from pipeline.core.images import to_data_url
from pipeline.core.slime_names import refuse

__getattr__ = refuse("slime.utils.processing_utils")


def load_tokenizer(name_or_path: str, **kwargs: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name_or_path, **kwargs)


def load_processor(name_or_path: str, **kwargs: Any) -> Any:
    """None for a model that has a tokenizer only."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError):
        return None
    return processor if hasattr(processor, "tokenizer") else None


def build_processor_kwargs(multimodal_inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """For `processor(text=..., **kwargs)`: ids come as lists, all else as torch tensors."""
    given = dict(multimodal_inputs or {})
    forced: dict[str, dict[str, Any]] = {
        f"{kind}_kwargs": {"return_tensors": "pt"} for kind in ("images", "videos", "audio")
    }
    forced["text_kwargs"] = {"return_tensors": None, "return_mm_token_type_ids": False}
    return given | {name: {**given.get(name, {}), **own} for name, own in forced.items()}


def encode_image_for_rollout_engine(image: Any) -> str:
    """A PIL image, a file or a data-URL, as engines take it."""
    return to_data_url(image)


def tokenizer_of(args: Any) -> Any:
    """The run's own tokenizer where `args` has it; else that of its model."""
    own = getattr(args, "tokenizer", None)
    if own is not None:
        return own
    if getattr(args, "mock", False):
        from pipeline.wiring.mock import tiny_words
        from stages.engine.mock import MockTokenizer

        return MockTokenizer(tiny_words(args.hf_checkpoint) or ())
    return load_tokenizer(args.hf_checkpoint)
