"""From a row to what the engine gets: the chat template and token ids."""

from __future__ import annotations

from typing import Any

from configs.schema import DataConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.protocols import Tokenizer
from stages.source.rows import Messages, Row

IMAGE = "<image>"


class Renderer:
    """`renderer(row)` -> (prompt, token ids). Without a tokenizer the prompt stays as it is and has
    no ids.

    The system prompt is put ahead of every chat that has none of its own. Without
    --apply-chat-template, text is encoded as it is (no special tokens added) and chat messages stay
    messages: whoever generates renders them."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer | None) -> None:
        self._config, self._tokenizer = config, tokenizer

    def __call__(self, row: Row) -> tuple[str | Messages, list[int]]:
        text = self.text(row)
        keeps_messages = isinstance(row.prompt, list) and not self._config.apply_chat_template
        if self._tokenizer is None:
            return (row.prompt if text is not None else self._messages(row)), []
        if text is None:
            return self._messages(row), []
        ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        return (self._messages(row) if keeps_messages else text), ids

    def text(self, row: Row) -> str | None:
        """The text that the model reads; None where whoever generates makes it. Raises DataError
        for a row that the template refuses, ConfigError for flags that don't fit."""
        config, tokenizer = self._config, self._tokenizer
        if isinstance(row.prompt, str) and not config.apply_chat_template:
            if config.system_prompt:
                raise ConfigError(
                    "--system-prompt needs a chat, but the prompts are plain text: add"
                    " --apply-chat-template"
                )
            return row.prompt
        messages = self._messages(row)
        if tokenizer is None:
            return row.prompt if isinstance(row.prompt, str) else None
        if not getattr(tokenizer, "chat_template", True):
            if config.apply_chat_template:
                raise ConfigError(
                    "--apply-chat-template: this tokenizer has no chat template; leave the flag out"
                    " for a base model"
                )
            return None
        return _apply(tokenizer, row, messages, config.template_arguments)

    def _messages(self, row: Row) -> Messages:
        messages = (
            [{"role": "user", "content": row.prompt}]
            if isinstance(row.prompt, str)
            else list(row.prompt)
        )
        if row.images:
            messages = _with_images(row, messages)
        system = self._config.system_prompt
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return messages


def _with_images(row: Row, messages: Messages) -> Messages:
    """The messages with contents as lists of text and images. An image goes to every <image>; where
    there is none, images go ahead of the first user's text."""
    marks = sum(_text_of(m).count(IMAGE) for m in messages) + sum(_parts_of(m) for m in messages)
    if marks not in (0, len(row.images)):
        raise DataError(
            f"{row.where}: {marks} places for images ({IMAGE} in the text, or parts of type image),"
            f" but {len(row.images)} images"
        )
    out, missing = [], len(row.images) if marks == 0 else 0
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            pieces = content.split(IMAGE)
            parts: list[dict[str, Any]] = [{"type": "text", "text": pieces[0]}]
            for piece in pieces[1:]:
                parts += [{"type": "image"}, {"type": "text", "text": piece}]
            content = [p for p in parts if p["type"] == "image" or p["text"]]
        if missing and message["role"] == "user":
            content, missing = [*[{"type": "image"}] * missing, *content], 0
        out.append({**message, "content": content})
    if missing:
        raise DataError(f"{row.where}: {missing} images, but no user message to show them in")
    return out


def _text_of(message: dict[str, Any]) -> str:
    return message["content"] if isinstance(message["content"], str) else ""


def _parts_of(message: dict[str, Any]) -> int:
    content = message["content"]
    return (
        sum(isinstance(p, dict) and p.get("type") == "image" for p in content)
        if isinstance(content, list)
        else 0
    )


def _apply(tokenizer: Tokenizer, row: Row, messages: Messages, more: dict[str, Any]) -> str:
    """The text of the chat, up to where the assistant begins to speak."""
    kwargs: dict[str, Any] = {**more, **({"tools": row.tools} if row.tools else {})}
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **kwargs
            )
        )
    except Exception as error:  # templates are programs of the model's author; each raises its own
        raise DataError(
            f"{row.where}: the chat template refuses the prompt: {type(error).__name__}: {error}"
        ) from error
