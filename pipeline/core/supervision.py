"""What a row of given answers is to a learner: its tokens, and which of them are trained.

A row is a whole chat; or a prompt with a label, which is the answer as text or the messages that
follow the prompt's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.conversation import LossMaskType, encode_pieces, eos_of, pieces_of, render_with
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.labels import accepted_answers
from pipeline.core.protocols import Tokenizer

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """Makes sequences to train on from prompts and labels."""

    tokenizer: Tokenizer
    loss_mask_type: LossMaskType = "qwen"
    max_tokens: int | None = None  # of a whole sequence
    template: Mapping[str, Any] = field(default_factory=dict)  # more for the chat template

    def check(self, prompt: Prompt, label: Any, tools: list[Any] | None) -> None:
        """Raises DataError for a row that cannot be trained on. Encodes it only where its length
        matters."""
        if self.max_tokens is not None:
            self.sequence(prompt, label, tools)
        elif (chat := _chat(prompt, label)) is not None:
            self._pieces(chat, tools)
        else:
            self._answer(label)

    def sequence(
        self, prompt: Prompt, label: Any, tools: list[Any] | None
    ) -> tuple[list[int], list[int]]:
        """(token ids, loss mask), both of the whole. Raises DataError."""
        chat = _chat(prompt, label)
        if chat is not None:
            tokens, mask = encode_pieces(self._pieces(chat, tools), self.tokenizer)
        else:
            text, answer = self.asked(prompt, tools), self._answer(label)
            asked = self.tokenizer.encode(text, add_special_tokens=False)
            tokens, mask = [*asked, *answer], [0] * len(asked) + [1] * len(answer)
        if 1 not in mask[1:]:
            raise DataError("no token is trained: expected an answer behind a prompt")
        if self.max_tokens is not None and len(tokens) > self.max_tokens:
            raise DataError(f"{len(tokens)} tokens: --rollout-max-context-len is {self.max_tokens}")
        return tokens, mask

    def _pieces(self, chat: list[dict[str, Any]], tools: list[Any] | None) -> Any:
        if not getattr(self.tokenizer, "chat_template", True):
            raise ConfigError(
                "the prompts are chats, but this tokenizer has no chat template: give a model with"
                " one, or prompts and answers as text (--input-key, --label-key)"
            )
        render = render_with(self.tokenizer, tools, **self.template)
        try:
            return pieces_of(chat, render, self.loss_mask_type)
        except DataError:
            raise
        except Exception as error:  # templates are programs of the model's author
            raise DataError(
                f"the chat template refuses the chat: {type(error).__name__}: {error}"
            ) from error

    def asked(self, prompt: Prompt, tools: list[Any] | None) -> str:
        """The text of a prompt, up to where the answer begins."""
        if isinstance(prompt, str):
            return prompt
        return render_with(self.tokenizer, tools, **self.template)(prompt, True)

    def _answer(self, label: Any) -> list[int]:
        """The first of the accepted answers, and the token that ends it."""
        eos = eos_of(self.tokenizer)
        if label is None:
            raise DataError(
                "text without a label: nothing to train on (--label-key names the column of the"
                " answer; or --input-key one of whole chats: lists of messages)"
            )
        try:
            text = accepted_answers(label)[0]
        except ValueError as error:
            raise DataError(f"{error}; expected an answer as text, or chat messages") from error
        return [*self.tokenizer.encode(text, add_special_tokens=False), eos]


def _chat(prompt: Prompt, label: Any) -> list[dict[str, Any]] | None:
    """The whole of it; None where the answer is text. Raises DataError for messages that follow
    text."""
    if isinstance(label, list) and label and all(isinstance(m, dict) for m in label):
        if isinstance(prompt, str):
            raise DataError(
                "the label is chat messages, but the prompt is text: expected both as messages"
                " (and no --apply-chat-template)"
            )
        return _checked([*prompt, *label])
    return _checked(prompt) if label is None and not isinstance(prompt, str) else None


def _checked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for place, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise DataError(f"message {place} is {message!r:.80}; expected a role and a content")
        wanted = message.get("step_loss_mask", 1)
        if wanted not in (0, 1):
            raise DataError(f"message {place} has step_loss_mask {wanted!r}; expected 0 or 1")
    return messages
