"""The config.json of a Hugging Face folder, for Megatron: read and compared with the flags. The
driver does so before anything starts, and so does every rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError
from stages.learn.megatron.architectures import SAME_AS, head_dim, shape_of
from stages.learn.megatron.arguments import convert, model_fields
from stages.learn.megatron.modelflags import split_flags


def read_hf_config(path: Path) -> Any:
    """transformers' configuration of the folder `path`.

    Raises CheckpointError for a folder or family that cannot be used.
    """
    from transformers import AutoConfig

    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: not a Hugging Face model folder (no config.json)")
    try:
        raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = SAME_AS.get(raw.get("model_type"))
        hf = (
            AutoConfig.for_model(**{**raw, "model_type": kind})
            if kind
            else AutoConfig.from_pretrained(path)
        )
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}/config.json: {error}") from error
    try:
        shape_of(hf)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    hf.head_dim = head_dim(hf)
    return hf


def check_folder(path: Path, flags: Mapping[str, Any]) -> None:
    """`flags`: Megatron's, as given. Raises CheckpointError for a variant of a family that cannot
    be expressed, ConfigError for flags that contradict config.json."""
    values = {name: convert(name, given) for name, given in flags.items()}
    split_flags(read_hf_config(path), model_fields(values), str(path))
