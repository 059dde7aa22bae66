"""A model's chat template as tokens that are only ever appended.

What the model sampled is never rendered and encoded again: a chat that goes on is what is known of
it, and behind that the tokens of what came since. The template says what these are: renderings of
the chat up to the known turn, and of the whole chat, differ by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.conversation import Messages, RenderedChat, render_with, text_since
from pipeline.core.errors import DataError

if TYPE_CHECKING:
    from pipeline.core.protocols import Tokenizer

Tools = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """`tokenizer`'s template, with the values of `arguments` (--apply-chat-template-kwargs)."""

    def __init__(self, tokenizer: Tokenizer, **arguments: Any) -> None:
        self._tokenizer, self._arguments = tokenizer, arguments

    def prompt(self, messages: Messages, tools: Tools = ()) -> list[int]:
        """The whole chat, up to where the assistant begins to speak. Raises DataError for one that
        the template cannot show."""
        return self._encode(self._chat(messages, tools).upto(len(messages), prompt=True))

    def since(
        self, messages: Messages, place: int, tools: Tools = (), *, stopped_at: int | None = None
    ) -> list[int]:
        """What comes behind the words of the assistant's message `place`: what closes its turn,
        then the messages after it, up to where the assistant begins to speak again. `stopped_at`:
        the token that ended the turn and is known already; None where a limit or a text did.

        Raises DataError where the template does not show where the turn ends."""
        chat = self._chat(messages, tools)
        rest = text_since(chat, len(messages), place, prompt=True)
        closing = chat.closing(place)
        ids = self._encode(closing + rest)
        return ids[self._num_known(ids, closing, stopped_at) :]

    def _num_known(self, ids: Sequence[int], closing: str, stopped_at: int | None) -> int:
        """How many of the tokens the turn has at its end already: its last, where that is what the
        template closes turns with, or stands for it."""
        if stopped_at is None or not ids:
            return 0
        return int(ids[0] == stopped_at or (bool(closing) and self._is_special(ids[0])))

    def _is_special(self, token: int) -> bool:
        return not self._tokenizer.decode([token], skip_special_tokens=True)

    def _chat(self, messages: Messages, tools: Tools) -> RenderedChat:
        render = render_with(self._tokenizer, list(tools) or None, **self._arguments)

        def shown(chat: Messages, prompt: bool) -> str:
            try:
                return render(chat, prompt)
            except Exception as error:  # a template may raise anything
                raise DataError(
                    f"the chat template does not show these messages: {error}"
                ) from error

        return RenderedChat(messages, shown)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
