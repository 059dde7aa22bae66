"""A model by its name on the Hugging Face Hub (`Qwen/Qwen3-0.6B`): it is fetched once, into Hugging
Face's own cache, and is a folder like any other from then on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import CheckpointError

# weights and what belongs to them; the same weights in other formats are left where they are
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
UNWANTED = ("original/*", "onnx/*", "openvino/*", "metal/*")
Fetch = Callable[[str], str]  # name -> folder


def fetch_model(name: str, fetch: Fetch | None = None) -> Path:
    """The folder of the model `name`: from the cache, else from the Hub.

    `fetch` raises OSError or ValueError where it cannot get the model; then CheckpointError is
    raised, which says how to get it by hand."""
    try:
        return Path((fetch or _from_hub)(name))
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"--hf-checkpoint {name}: no such folder (working folder: {Path.cwd()}), and as a name"
            f" on the Hugging Face Hub it is not to be had: {_reason(said)}. Where the Hub can be"
            f" reached: hf download {name} --local-dir {name.rpartition('/')[2]}; then give that"
            " folder"
        ) from error


def _reason(said: str) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "it is not in the cache, and HF_HUB_OFFLINE forbids to ask the Hub"
    return said[:300].rstrip(". ")


def _from_hub(name: str) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(name, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED)))
