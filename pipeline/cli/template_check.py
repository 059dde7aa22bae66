"""Whether chats by a chat template are append-only: of every kind of chat that an agent has, what a
turn that was sampled becomes when others speak after it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.core.conversation import shared_beginning
from pipeline.core.errors import GenerateError
from stages.generate.tools.agent import parser_named, template_of
from stages.generate.tools.calls import Call, CallParser, ParsedTurn
from stages.generate.tools.tool import Tool
from stages.generate.tools.transcript import Transcript

SHOWN = 60  # characters on either side of where two renderings part
_THOUGHT = "<think>\nA thought.\n</think>\n\n"
_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>\s*")
_OPENED = re.compile(r"<think>\s*$")


class Step(NamedTuple):
    """One turn of the assistant's, and what is said to it."""

    calls: int = 0
    thinks: bool = False
    words: str = ""


# the kinds of chat, by what the assistant does in turn; who has made no call is asked again
CHATS: dict[str, Sequence[Step]] = {
    "calls, one a turn": [Step(calls=1), Step(calls=1)],
    "calls behind words": [Step(calls=1, words="I look."), Step(calls=1, words="And again.")],
    "two calls in one turn": [Step(calls=2), Step(calls=2)],
    "thinking, then calls": [Step(calls=1, thinks=True), Step(calls=1, thinks=True)],
    "a second question": [Step(words="One."), Step(words="Two.")],
    "a second question, thinking": [Step(words="One.", thinks=True), Step(words="Two.")],
    "a second question, after calls": [Step(calls=1), Step(words="One."), Step(words="Two.")],
}


class Verdict(NamedTuple):
    """What becomes of one kind of chat, in a word, and line by line what is wrong."""

    word: str
    problem: Sequence[str] = ()


APPENDS = Verdict("append-only")


class TemplateCheck:
    """One tokenizer's template, with the tools of an agent."""

    def __init__(
        self, tokenizer: Any, tools: Sequence[Tool], parser: str | CallParser, **arguments: Any
    ) -> None:
        """`parser`: as in `args.tool_call_parser`. Raises ConfigError where it is "auto", and the
        template does not tell the format of calls."""
        self.tools = tools
        self.template = template_of(tokenizer, [t.definition for t in tools], arguments)
        self._parse = parser_named(parser, self.template)

    def verdicts(self) -> Iterator[tuple[str, Verdict]]:
        """(kind of chat, what becomes of it)"""
        for name, steps in CHATS.items():
            try:
                yield name, self._verdict(steps)
            except GenerateError as error:
                yield name, Verdict("refused", [str(error)])

    def _verdict(self, steps: Sequence[Step]) -> Verdict:
        template = self.template
        chat = Transcript(template, [{"role": "user", "content": "A question."}])
        for step in steps:
            then = chat.shown
            text = self._sampled(chat, step)
            parsed = self._parse(text, self.tools)
            if [type(call) for call in parsed.calls] != [Call] * step.calls:
                return Verdict("not read as calls", [repr(text)])
            message = chat.say(text, parsed)
            said = template.observations(message, parsed.calls, ["A result."] * step.calls)
            if chat.follow(said or [{"role": "user", "content": "And then?"}], None) is None:
                return Verdict("forks", _difference(then + text, chat.shown))
        return APPENDS

    def _sampled(self, chat: Transcript, step: Step) -> str:
        """What a model would write, which has learned from this template."""
        thought = _THOUGHT if step.thinks else ""
        if thought and _OPENED.search(chat.shown):
            thought = thought.removeprefix("<think>\n")
        call = Call(name=self.tools[0].name, arguments=_example(self.tools[0].parameters))
        return thought + step.words + self._written(chat, [call] * step.calls)

    def _written(self, chat: Transcript, calls: Sequence[Call]) -> str:
        """Calls as the template writes them."""
        if not calls:
            return ""
        template = self.template
        message = template.turn("", ParsedTurn("", tuple(calls)))
        if "tool_calls" not in message:
            if len(calls) > 1:  # Llama 3's shows one in a turn
                return "; ".join(self._written(chat, [call]) for call in calls)
            return _in_hermes(calls[0])
        rendered = template.render([*chat.messages, message], False)
        start = len(template.render(chat.messages, False))
        written = rendered[start:].removesuffix(template.closing)
        opening = shared_beginning(written, chat.shown[start:])
        return _EMPTY_THOUGHT.sub("", written.removeprefix(opening))


def _in_hermes(call: Call) -> str:
    said = json.dumps({"name": call.name, "arguments": call.arguments})
    return f"<tool_call>\n{said}\n</tool_call>"


def _example(schema: Mapping[str, Any]) -> Any:
    """Something that is valid under a schema, as far as a chat template cares."""
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _example(schema["anyOf"][0])
    match schema.get("type"):
        case "object":
            known = schema.get("properties", {})
            return {k: _example(v) for k, v in known.items() if k in schema.get("required", ())}
        case "array":
            return []
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case "null":
            return None
    return "words"


def _difference(then: str, now: str) -> list[str]:
    """Where the two part, with what stands around it."""
    at = len(shared_beginning(then, now))
    begin = max(at - SHOWN, 0)
    return [
        f"{name} {text[begin : at + SHOWN]!r}" for name, text in (("was:", then), ("is: ", now))
    ]
