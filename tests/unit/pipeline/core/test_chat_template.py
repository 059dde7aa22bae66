"""A chat that goes on: the tokens behind what is known, by four ways in which templates close a
turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2
import pytest

from pipeline.core.chat_template import ChatTemplate
from pipeline.core.errors import GenerateError
from stages.generate.tools.template import AgentTemplate

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|user|>", "<|observation|>", "<|eos|>")
CHATML = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools[0].function.name }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# the thinking of every turn but the newest is left out
FORGETS = CHATML.replace(
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)
UNCLOSED = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'tool' %}<|observation|>{{ m.content }}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}\n{% endif %}"
)


class Tokens:
    """Characters as ids, and `SPECIAL` as one id each; templates as Hugging Face renders them."""

    def __init__(self, template: str) -> None:
        self._template = jinja2.Environment(autoescape=False).from_string(template)
        self._ids = {text: -1 - i for i, text in enumerate(SPECIAL)}

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        parts = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text)
        return [
            i for p in parts for i in ([self._ids[p]] if p in self._ids else [ord(c) for c in p])
        ]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        special = ("",) * len(SPECIAL) if skip_special_tokens else SPECIAL
        return "".join(chr(i) if i >= 0 else special[-1 - i] for i in token_ids)

    def get_added_vocab(self) -> dict[str, int]:
        return self._ids

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> str:
        return self._template.render(messages=messages, **kwargs)


def chat_template(tokens: Any, **arguments: Any) -> ChatTemplate:
    return ChatTemplate(
        lambda tools: AgentTemplate(tokens, tools, **arguments),
        lambda token: tokens.decode([token], skip_special_tokens=False),
    )


USER = {"role": "user", "content": "hi"}
THOUGHT = {"role": "assistant", "content": "<think>hm</think>yes"}
TOOL = {"role": "tool", "content": "4"}


def stop(name: str) -> int:
    return -1 - SPECIAL.index(name)


@pytest.mark.parametrize("template", [CHATML, FORGETS])
@pytest.mark.parametrize(
    ("stopped_at", "closing"),
    [
        (stop("<|im_end|>"), ""),  # the token that the template writes is there already
        (stop("<|eos|>"), ""),  # another one stands for it
        (None, "<|im_end|>"),  # cut off: the template closes the turn
    ],
)
def test_what_comes_since_closes_the_turn_once(
    template: str, stopped_at: int | None, closing: str
) -> None:
    tokens = Tokens(template)
    more = chat_template(tokens).since([USER, THOUGHT, USER], 1, stopped_at=stopped_at)
    expected = closing + "\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokens.decode(more, skip_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("after", "stopped_at", "expected"),
    [
        (USER, stop("<|user|>"), "hi\n"),
        (TOOL, stop("<|observation|>"), "4\n"),
        (USER, stop("<|eos|>"), "<|user|>hi\n"),
        (USER, None, "<|user|>hi\n"),
    ],
)
def test_a_turn_that_the_next_one_ends(
    after: dict[str, str], stopped_at: int | None, expected: str
) -> None:
    tokens = Tokens(UNCLOSED)
    more = chat_template(tokens).since([USER, THOUGHT, after], 1, stopped_at=stopped_at)
    assert tokens.decode(more, skip_special_tokens=False) == expected


def test_the_prompt_has_tools_and_arguments() -> None:
    tokens = Tokens("{{ mood }}" + CHATML)
    ids = chat_template(tokens, mood="!").prompt(
        [USER], [{"type": "function", "function": {"name": "f"}}]
    )
    text = tokens.decode(ids, skip_special_tokens=False)
    assert text.startswith("!<|im_start|>system\nTools: f<|im_end|>\n<|im_start|>user\nhi")
    assert text.endswith("<|im_start|>assistant\n")


def test_a_template_that_refuses_is_told_of() -> None:
    tokens = Tokens("{{ messages[9].content.strip() }}")
    with pytest.raises(GenerateError, match="the chat template refuses the messages"):
        chat_template(tokens).prompt([USER])
