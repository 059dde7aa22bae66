"""A model's chat template as tokens that are only ever appended.

What the model sampled is never rendered and encoded again: a chat that goes on is what is known of
it, and behind that the tokens of what came since. The template says what these are: renderings of
the chat up to the known turn, and of the whole chat, differ by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.core.conversation import Messages, RenderedChat, text_since

Tools = Sequence[Mapping[str, Any]]


class TextTemplate(Protocol):
    """A chat template, of a chat with certain tools."""

    @property
    def closing(self) -> str:
        """What it puts behind an assistant's words, before anybody else speaks."""

    @property
    def controls(self) -> Sequence[str]:
        """The texts that are tokens of their own, whatever stands around them."""

    def render(self, messages: Messages, prompt: bool) -> str:
        """The chat's text; with `prompt`, up to where the assistant begins to speak. Raises
        GenerateError where the template refuses it."""

    def guarded(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message from outside, whose words are no control tokens."""

    def encode(self, text: str, *, begins: bool = False) -> list[int]:
        """Tokens of text behind other text, or that `begins` the chat."""


class ChatTemplate:
    def __init__(
        self, of: Callable[[Tools], TextTemplate], token_text: Callable[[int], str]
    ) -> None:
        """`of`: the template of chats with these tools. `token_text`: the text of one token."""
        self._of, self._token_text = of, token_text

    def prompt(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """The whole chat, up to where the assistant begins to speak. Raises GenerateError for one
        that the template cannot show."""
        template = self._of(tools)
        chat = _guarded(template, messages)
        return template.encode(template.render(chat, True), begins=True)

    def since(
        self, messages: Messages, place: int, tools: Tools = (), *, stopped_at: int | None = None
    ) -> list[int]:
        """What comes behind the words of the assistant's message `place`: what closes its turn,
        then the messages after it, up to where the assistant begins to speak again. `stopped_at`:
        the token that ended the turn and is known already; None where a limit or a text did.

        Raises DataError where the template does not show where the turn ends, else as `prompt`."""
        template = self._of(tools)
        chat = RenderedChat(_guarded(template, messages), template.render)
        text = template.closing + text_since(chat, len(messages), place, prompt=True)
        stop = None if stopped_at is None else self._token_text(stopped_at)
        return template.encode(without_stop(text, stop, template))


def without_stop(text: str, stop: str | None, template: TextTemplate) -> str:
    """Text behind a turn, without what closes it: a turn is closed once, by the token that was
    sampled, if one was. `stop`: its text."""
    if stop is None:
        return text
    if text.startswith(stop):
        return text[len(stop) :]
    closed_by = next((c for c in template.controls if template.closing.startswith(c)), None)
    if closed_by is not None and text.startswith(closed_by):
        return text[len(closed_by) :]  # Llama's <|eom_id|> in the place of <|eot_id|>
    return text


def _guarded(template: TextTemplate, messages: Messages) -> list[dict[str, Any]]:
    """What the model itself has said may hold its control tokens: its thinking, its calls."""
    return [
        dict(message) if message["role"] == "assistant" else template.guarded(dict(message))
        for message in messages
    ]
