"""A chat template as an agent needs it: what it tells of tools, how it closes a turn, and its text
as tokens, in which a tool's words are never control tokens."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from pipeline.core.conversation import Messages, RenderedChat, render_with
from pipeline.core.errors import DataError, GenerateError
from pipeline.core.protocols import Tokenizer
from stages.generate.tools.calls import Call, GarbledCall, ParsedTurn
from stages.generate.tools.formats import detect_format

STAND_IN = "Slipstream-stand-in-for-words"
# stands inside of what would be read as a control token; text is encoded in pieces between these
CUT = "\U000f5afe"
_ASKED = {"role": "user", "content": "A question."}
_IN_WORDS = (
    "You may call functions. Their signatures are within <tools></tools>:\n<tools>\n{}\n</tools>\n"
    "For each call write a JSON object with name and arguments within <tool_call></tool_call>:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <arguments-object>}}\n</tool_call>'
)

Message = dict[str, Any]


class AgentTemplate:
    """One tokenizer's template, with the tools that an agent has. What it can do is found by trying
    it; that takes some milliseconds, once."""

    def __init__(
        self, tokenizer: Tokenizer, definitions: Sequence[Mapping[str, Any]] = (), **arguments: Any
    ) -> None:
        """`definitions`: of tools, as OpenAI has them. `arguments`: further values for the
        template, such as enable_thinking."""
        self._tokenizer = tokenizer
        self._definitions = list(definitions)
        self._raw = render_with(tokenizer, self._definitions, **arguments)

    def render(self, messages: Messages, prompt: bool) -> str:
        """The chat's text; with `prompt`, up to where the assistant begins to speak. Raises
        GenerateError where the template refuses it."""
        try:
            return self._raw(self._with_tools(messages), prompt)
        except Exception as error:  # whatever a template's code raises
            raise GenerateError(
                f"the chat template refuses the messages of the roles"
                f" {', '.join(str(m.get('role')) for m in messages)}:"
                f" {type(error).__name__}: {error}"
            ) from error

    def turn(self, text: str, parsed: ParsedTurn) -> Message:
        """The message of what the model said: with its calls as such, where all of them can be read
        and the template shows them and what was said beside them; else its words as they are."""
        calls = [call for call in parsed.calls if isinstance(call, Call)]
        content = parsed.content.rstrip()
        if not calls or len(calls) < len(parsed.calls) or self._call_form is None:
            return {"role": "assistant", "content": text}
        empty, as_text, shows_content = self._call_form
        if (content and not shows_content) or (len(calls) > 1 and not self._takes_several):
            return {"role": "assistant", "content": text}
        return _calling(content or empty, calls, as_text)

    def observations(
        self, turn: Message, calls: Sequence[Call | GarbledCall], texts: Sequence[str]
    ) -> list[Message]:
        """What the tools said to the calls of a turn."""
        ids = [call["id"] for call in turn.get("tool_calls", ())] or [
            _call_id(place) for place in range(len(calls))
        ]
        role = "tool" if "tool_calls" in turn or self._takes_tools_unasked else "user"
        return [
            {"role": role, "content": text}
            | (
                {"name": getattr(call, "name", "unreadable"), "tool_call_id": at}
                if role == "tool"
                else {}
            )
            for call, text, at in zip(calls, texts, ids, strict=True)
        ]

    def guarded(self, message: Message) -> Message:
        """The message, from outside, with a cut in whatever would be a control token."""
        content = message.get("content")
        if not isinstance(content, str) or self._controls is None:
            return message
        clean = content.replace(CUT, "\ufffd")
        return {**message, "content": self._controls.sub(lambda m: m[0][0] + CUT + m[0][1:], clean)}

    def encode(self, text: str, *, begins: bool = False) -> list[int]:
        """Token ids of text that follows other text, or that `begins` the chat."""
        first, *rest = text.split(CUT)
        ids = self._plain(first) if begins else self._following(first)
        for piece in rest:
            ids += self._following(piece)
        return ids

    @property
    def source(self) -> str:
        """The template itself, where there is one."""
        text = getattr(self._tokenizer, "chat_template", None) or ""
        return text if isinstance(text, str) else json.dumps(text)

    @property
    def format(self) -> str:
        """The name of the format in which the model is told to write its calls, in
        stages.generate.tools.formats. Raises ConfigError where that cannot be told."""
        return detect_format(self.source) if self.shows_tools else "hermes"

    @cached_property
    def shows_tools(self) -> bool:
        """Does the template tell the model of tools? Else a system message does, in Hermes's
        words."""
        if not self._definitions:
            return True
        name = str(self._definitions[0]["function"]["name"])
        try:
            return name in self._raw([_ASKED], True)
        except Exception:  # a template that knows no tools may say so
            return False

    @cached_property
    def closing(self) -> str:
        """What the template puts behind an assistant's words, before anybody else speaks."""
        try:
            return RenderedChat([_ASKED, {"role": "assistant"}], self.render).closing(1)
        except (DataError, GenerateError):
            return ""

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """The texts that are tokens of their own, whatever stands around them."""
        added: Mapping[str, int] = getattr(self._tokenizer, "get_added_vocab", dict)()
        return tuple(sorted((t for t in added if len(t) > 1 and t.strip()), key=len, reverse=True))

    @cached_property
    def _controls(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self.controls))) if self.controls else None

    @cached_property
    def _call_form(self) -> tuple[str | None, bool, bool] | None:
        """How the template wants calls: the content where nothing else was said, whether arguments
        are text, and whether it shows what was said beside them. None: it shows no calls."""
        call = [Call(name=STAND_IN, arguments={"key": "value"})]
        for empty, as_text in itertools.product(("", None), (False, True)):
            if STAND_IN in self._tried([_ASKED, _calling(empty, call, as_text)]):
                words = STAND_IN[::-1]
                both = self._tried([_ASKED, _calling(words, call, as_text)])
                return empty, as_text, words in both and STAND_IN in both
        return None

    @cached_property
    def _takes_several(self) -> bool:
        """Does the template show several calls of one turn? Llama 3's does not."""
        assert self._call_form is not None
        names = STAND_IN, STAND_IN[::-1]
        calls = [Call(name=name, arguments={"key": "value"}) for name in names]
        text = self._tried([_ASKED, _calling(self._call_form[0], calls, self._call_form[1])])
        return all(name in text for name in names)

    @cached_property
    def _takes_tools_unasked(self) -> bool:
        """May a tool speak where the template has seen no call, after one that was garbled?"""
        said = {"role": "assistant", "content": "Words."}
        answer = {"role": "tool", "name": "t", "tool_call_id": _call_id(0), "content": STAND_IN}
        return STAND_IN in self._tried([_ASKED, said, answer])

    def _tried(self, messages: Sequence[Message]) -> str:
        try:
            return self.render(messages, False)
        except GenerateError:
            return ""

    def _with_tools(self, messages: Messages) -> list[Message]:
        if not self._definitions or self.shows_tools:
            return [dict(m) for m in messages]
        lines = "\n".join(json.dumps(d, ensure_ascii=False) for d in self._definitions)
        words, rest = _IN_WORDS.format(lines), [dict(m) for m in messages]
        if rest and rest[0].get("role") == "system":
            words, rest = f"{rest[0]['content']}\n\n{words}", rest[1:]
        return [{"role": "system", "content": words}, *rest]

    def _plain(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def _following(self, text: str) -> list[int]:
        """Encoded behind a control token: by itself, a SentencePiece tokenizer would put a space
        ahead of it."""
        if not text or self._anchor is None:
            return self._plain(text)
        anchor, token = self._anchor
        ids = self._plain(anchor + text)
        return ids[1:] if ids[:1] == [token] else self._plain(text)

    @cached_property
    def _anchor(self) -> tuple[str, int] | None:
        eos = getattr(self._tokenizer, "eos_token", None)
        if not isinstance(eos, str) or eos not in self.controls:
            return None
        ids = self._plain(eos)
        return (eos, ids[0]) if len(ids) == 1 else None


def _calling(content: str | None, calls: Sequence[Call], as_text: bool) -> Message:
    def arguments(call: Call) -> Any:
        return json.dumps(call.arguments, ensure_ascii=False) if as_text else call.arguments

    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "type": "function",
                "id": _call_id(place),
                "function": {"name": call.name, "arguments": arguments(call)},
            }
            for place, call in enumerate(calls)
        ],
    }


def _call_id(place: int) -> str:
    return f"call{place:05d}"  # nine letters and digits, which is what Mistral's template wants
