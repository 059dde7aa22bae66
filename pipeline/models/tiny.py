"""`tiny:FILE.yaml`: a randomly initialised model of that shape, with a byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import CheckpointError
from pipeline.models.folder import make_once
from pipeline.models.tiny_vision import MARKS, save_processor, sees, vision_tokens

PAD, EOS, IM_START, IM_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tiny(path: Path, cache_dir: Path, seed: int) -> Path:
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
    return make_once(
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
