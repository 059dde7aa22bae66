"""Whole chats as sequences: what the assistant said is trained, in the words of its template, and
nothing else; for templates that rewrite earlier turns too."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.conversation import LossMaskType, encode_pieces, pieces_of, render_with
from pipeline.core.errors import DataError
from pipeline.models.tiny import CHATML, byte_tokenizer

# behaves as Qwen3's: thinking only behind the last question, empty where the last turn has none,
# consecutive answers of tools in one turn of the user's, tools in the system's
QWEN3 = """
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif -%}
{%- set ns = namespace(asked=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.asked = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}<|im_start|>user{%- endif %}
<tool_response>{{ m.content }}</tool_response>
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}<|im_end|>
{% endif -%}
{%- elif m.role == 'assistant' -%}
{%- set parts = (m.content or '').split('</think>') -%}
{%- set thought = parts[0].replace('<think>', '').strip() if parts | length > 1 else '' -%}
<|im_start|>assistant
{% if loop.index0 > ns.asked and (loop.last or thought) -%}
<think>
{{ thought }}
</think>

{% endif -%}
{{ parts[-1].strip() }}
{%- for call in m.tool_calls or [] -%}<tool_call>{{ call | tojson }}</tool_call>{%- endfor -%}
<|im_end|>
{% else -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking -%}
<think>

</think>

{% endif -%}
{%- endif -%}
"""
LLAMA3 = (
    "<|eot|>{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)
# hides all thinking, and opens it in the prompt
DISTILLED = (
    "{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% else %}<A>"
    "{{ m.content.split('</think>')[-1] }}<E>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<A><think>\n{% endif %}"
)
# as GLM's: the next turn's mark is what ends a turn
UNCLOSED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THOUGHT = "<think>\nhm\n</think>\n\n"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text}


CHAT = [user("a"), said("b"), user("c"), said("d")]
AGENT = [user("a"), said(None, tool_calls=[{"f": 1}]), tool("1"), tool("2"), said(THOUGHT + "d")]


def shown(
    template: str, chat: list[dict[str, Any]], kind: LossMaskType = "qwen", **more: Any
) -> str:
    """The text, [[trained]] parts marked, by way of tokens."""
    tokenizer = byte_tokenizer(4096)
    tokenizer.chat_template = template
    pieces = pieces_of(chat, render_with(tokenizer, **more), kind)
    tokens, mask = encode_pieces(pieces, tokenizer)
    text, inside = "", False
    for token, trained in zip(tokens, mask, strict=True):
        text += ("[[" if trained else "]]") if bool(trained) != inside else ""
        inside = bool(trained)
        text += tokenizer.decode([token])
    return text + ("]]" if inside else "")


def unmarked(text: str) -> str:
    return text.replace("[[", "").replace("]]", "")


@pytest.mark.parametrize("template", [CHATML, LLAMA3])
@pytest.mark.parametrize(
    "chat", [CHAT, [*CHAT, user("e")], [{"role": "system", "content": "S"}, *CHAT]]
)
def test_where_a_template_rewrites_nothing_the_pieces_are_the_whole(
    template: str, chat: list[dict[str, Any]]
) -> None:
    tokenizer = byte_tokenizer(4096)
    tokenizer.chat_template = template
    kinds: tuple[LossMaskType, ...] = ("qwen", "qwen3", "qwen3_5")
    got = {shown(template, chat, kind) for kind in kinds}
    assert {unmarked(text) for text in got} == {
        tokenizer.apply_chat_template(chat, tokenize=False)
    } and len(got) == 1


def test_every_assistant_turn_is_trained_with_what_closes_it_and_nothing_else() -> None:
    assert shown(CHATML, CHAT).split("<|im_start|>") == [
        "",
        "user\na<|im_end|>\n",
        "assistant\n[[b<|im_end|>\n]]",
        "user\nc<|im_end|>\n",
        "assistant\n[[d<|im_end|>\n]]",
    ]


def test_thinking_stays_in_every_turn_though_the_template_drops_it_later() -> None:
    chat = [user("a"), said(THOUGHT + "b"), user("c"), said(THOUGHT + "d")]
    got = shown(QWEN3, chat, "qwen3")
    assert got.split("<|im_start|>")[2::2] == [
        "assistant\n[[<think>\nhm\n</think>\n\nb<|im_end|>\n]]",
        "assistant\n[[<think>\nhm\n</think>\n\nd<|im_end|>\n]]",
    ]
    assert "<|im_end|>\n]]<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n[[" in got


def test_as_the_template_shows_the_whole_chat_where_that_is_asked_for() -> None:
    chat = [user("a"), said(THOUGHT + "b"), user("c"), said(THOUGHT + "d")]
    tokenizer = byte_tokenizer(4096)
    tokenizer.chat_template = QWEN3
    got = shown(QWEN3, chat, "qwen3_5")
    assert unmarked(got) == tokenizer.apply_chat_template(chat, tokenize=False)
    assert got.split("<|im_start|>")[2::2] == [
        "assistant\n[[b<|im_end|>\n]]",
        "assistant\n[[<think>\nhm\n</think>\n\nd<|im_end|>\n]]",
    ]


def test_an_empty_thought_is_of_the_turn_unless_the_prompt_has_it() -> None:
    got = shown(QWEN3, CHAT)
    assert got.count("assistant\n[[<think>\n\n</think>\n\n") == 2
    got = shown(QWEN3, CHAT, enable_thinking=False)
    assert got.count("assistant\n<think>\n\n</think>\n\n[[") == 2


def test_calls_are_trained_and_what_tools_answer_is_not() -> None:
    got = shown(QWEN3, AGENT, tools=[{"name": "f"}])
    assert got.startswith('<|im_start|>system\n{"name": "f"}<|im_end|>\n<|im_start|>user\na')
    assert got.count("[[") == 2
    assert '[[<think>\n\n</think>\n\n<tool_call>{"f": 1}</tool_call><|im_end|>\n]]' in got
    assert "]]<|im_start|>user<tool_response>1</tool_response><tool_response>2<" in got


def test_a_turn_of_step_loss_mask_0_is_context_only() -> None:
    chat = [user("a"), said("b", step_loss_mask=0), user("c"), said("d", step_loss_mask=1)]
    assert shown(CHATML, chat) == shown(CHATML, CHAT).replace("[[", "", 1).replace("]]", "", 1)


def test_where_a_template_closes_nothing_the_token_that_follows_ends_a_turn() -> None:
    got = shown(UNCLOSED, CHAT)
    assert got == (
        "<|im_start|>user\na<|im_start|>assistant\n[[b<|im_start|>]]user\nc"
        "<|im_start|>assistant\n[[d<|im_end|>]]"
    )
    masked = [user("a"), said("b", step_loss_mask=0), user("c"), said("d"), user("e")]
    assert shown(UNCLOSED, masked).endswith(
        "assistant\nb<|im_start|>user\nc<|im_start|>assistant\n[[d<|im_start|>]]user\ne"
    )


def test_the_last_message_of_a_distilled_reasoner_as_it_is_written() -> None:
    chat = [user("a"), said("b"), user("c"), said(THOUGHT + "d")]
    assert shown(DISTILLED, chat, "distill_qwen") == (
        "<U>a<A>b<E><U>c<A><think>\n[[hm\n</think>\n\nd<E>]]"
    )
    with pytest.raises(DataError, match=r"message 3: .*leaves out.*distill_qwen"):
        shown(DISTILLED, chat)


@pytest.mark.parametrize(
    ("template", "chat", "kind", "says"),
    [
        (CHATML, [user("a")], "qwen", "no message is of role assistant"),
        (CHATML, [said("a")], "qwen", "the assistant speaks first"),
        (CHATML, [user("a"), said("b", step_loss_mask=0)], "qwen", "step_loss_mask 0"),
        (CHATML, [user("a"), said("b", reasoning_content="hm")], "qwen", "its reasoning_content"),
        (CHATML, [*CHAT, user("e")], "distill_qwen", "role 'user'"),
        ("{{ messages | length }}", CHAT, "qwen", "message 1"),
        ("{{ messages | map(attribute='content') | join | upper }}", CHAT, "qwen", "message 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    template: str, chat: list[dict[str, Any]], kind: LossMaskType, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        shown(template, chat, kind)
