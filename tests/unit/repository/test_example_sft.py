"""The supervised example: which tokens carry loss, in one turn and in several."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from configs.command_line.loader import load_config
from examples.sft import conversation, generate
from pipeline.core.errors import GenerateError
from pipeline.core.types import Sample
from pipeline.wiring.foreign_flags import FAMILIES
from stages.generate.check import check_sample

CHAT = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "bc"},
    {"role": "tool", "content": "d"},
    {"role": "assistant", "content": "e"},
]


class Tokenizer:
    """A token a character; a turn is `<r...>`, r the role's first letter."""

    eos_token_id = ord("$")

    def __init__(self, *, forgets: bool = False) -> None:
        self._forgets = forgets

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, **_: Any
    ) -> list[int]:
        turns = [
            f"<{m['role'][0]}{'' if self._forgets and m is not messages[-1] else m['content']}>"
            for m in messages
        ]
        return self.encode("".join(turns) + ("<a" if add_generation_prompt else ""))


def args(**flags: Any) -> SimpleNamespace:
    return SimpleNamespace(tokenizer=Tokenizer(**flags))


def shown(sample: Sample) -> str:
    """Trained characters in capitals."""
    assert sample.loss_mask is not None
    mask = [0] * sample.prompt_length + list(sample.loss_mask)
    return "".join(
        chr(t).upper() if m else chr(t) for t, m in zip(sample.tokens, mask, strict=True)
    )


async def test_a_text_label_is_the_response() -> None:
    got = await generate(args(), Sample(prompt="ab", tokens=[ord("a"), ord("b")], label="cd"), {})
    assert shown(got) == "abCD$"
    check_sample(got, fallback_version=0)


async def test_every_assistant_turn_is_trained_and_nothing_else() -> None:
    got = await generate(args(), Sample(prompt=CHAT[:1], label=CHAT[1:]), {})
    assert shown(got) == "<ua><aBC><td><aE>"
    assert [
        chr(t)
        for t, m in zip(got.tokens[got.prompt_length :], got.loss_mask or [], strict=True)
        if m
    ] == list("bc>e>")
    check_sample(got, fallback_version=0)


def test_a_template_that_forgets_is_refused() -> None:
    with pytest.raises(GenerateError, match="turn 1"):
        conversation(Tokenizer(forgets=True), CHAT)


@pytest.mark.parametrize("label", [None, 3, CHAT[1:], []])
async def test_what_has_no_answer_is_refused(label: Any) -> None:
    prompt: Any = CHAT[:1] if label == [] else "a"
    with pytest.raises(GenerateError, match=r"expected a label|nothing to train"):
        await generate(args(), Sample(prompt=prompt, tokens=[1], label=label), {})


def test_the_preset_is_in_order() -> None:
    config = load_config(["--config", "configs/presets/sft.yaml"], FAMILIES)
    assert config.algorithm.loss_type == "sft_loss"
