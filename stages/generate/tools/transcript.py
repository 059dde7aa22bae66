"""A chat that grows: of each new message only the text that it adds is rendered, so that what was
sampled stays the very tokens that were sampled.

Some templates show earlier turns otherwise once there are later ones (Qwen3 drops the thinking). A
chat cannot be continued there: the model would be given another history when it is used."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.chat_template import without_stop
from pipeline.core.conversation import RenderedChat, text_since
from pipeline.core.errors import DataError
from stages.generate.tools.calls import ParsedTurn
from stages.generate.tools.template import AgentTemplate, Message


class Transcript:
    """`messages`, and `shown`: the text ahead of the turn that comes next (or came last)."""

    def __init__(
        self, template: AgentTemplate, messages: Sequence[Message], *, keeps_turns: bool = False
    ) -> None:
        """`keeps_turns`: what was sampled stays, whatever the template would make of it. Raises
        GenerateError where the template refuses the messages."""
        self.template = template
        self.keeps_turns = keeps_turns
        self.messages = list(messages)
        self.shown = template.render(self.messages, True)
        self._said = ""

    def say(self, text: str, parsed: ParsedTurn) -> Message:
        """The assistant has said this. `text`: without the token that ended it."""
        message = self.template.turn(text, parsed)
        self.messages.append(message)
        self._said = text
        return message

    def follow(self, messages: Sequence[Message], stop: str | None) -> str | None:
        """Others have said this; the assistant is next. The text to append to what was sampled, or
        None where the template shows earlier turns otherwise now: then all of `shown` is new.

        `stop`: the text of the token that ended the last turn, and is there already."""
        place = len(self.messages) - 1
        self.messages += messages
        chat = RenderedChat(self.messages, self.template.render)
        then, self.shown = self.shown, chat.upto(len(self.messages), prompt=True)
        added = self._added(chat, then, place)
        return None if added is None else without_stop(added, stop, self.template)

    def _added(self, chat: RenderedChat, then: str, place: int) -> str | None:
        """What `shown` has behind the words of the turn `place`, ahead of which was `then`."""
        now = self.shown
        if now.startswith(then + self._said):
            return now[len(then) + len(self._said) :]
        # the template writes the turn in its own way: does it still show all of it?
        rest = _rest(chat, place)
        if rest is None or not now.startswith(then) or not now.endswith(rest):
            return self._kept(rest)
        if not self._shows(place, now[len(then) : len(now) - len(rest)]):
            return self._kept(rest)
        return self.template.closing + rest

    def _kept(self, rest: str | None) -> str | None:
        return self.template.closing + rest if self.keeps_turns and rest is not None else None

    def _shows(self, place: int, text: str) -> bool:
        """Are the words and the calls of the turn in this text?"""
        message, shown = self.messages[place], "".join(text.split())
        words = [
            message["content"] or "",
            *(c["function"]["name"] for c in message.get("tool_calls", ())),
        ]
        return all("".join(part.split()) in shown for part in words)


def _rest(chat: RenderedChat, place: int) -> str | None:
    """What the messages behind the turn add, whatever the template makes of the turn itself; None
    where it does not show where the turn ends."""
    try:
        return text_since(chat, len(chat.messages), place, prompt=True)
    except DataError:
        return None
