"""A protocol that agents speak, told by how its bodies become the gateway's own form and back: the
bodies of OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import orjson

from stages.gateway.answer import chat_chunks
from stages.gateway.errors import RequestError
from stages.gateway.openapi import CHAT_COMPLETIONS
from stages.gateway.past import Past

JsonObject = dict[str, Any]


class Dialect(Protocol):
    """Pure: bodies in, bodies out."""

    path: str  # POST here

    def request(self, body: JsonObject, past: Past) -> JsonObject:
        """The body of a chat completion that asks for the same; instead of `messages` it may have a
        `prompt`, a text or token ids that no chat template is put around. `stream` is not looked
        at. `past`: of the session. Raises RequestError for what it cannot say."""

    def keep(self, chat: Mapping[str, Any], body: JsonObject, past: Past) -> None:
        """Notes an answer that later bodies may name. Most protocols have all in every body."""
        return

    def streams(self, body: JsonObject) -> bool:
        """Is the answer asked for as server-sent events? Of a body that `request` has taken."""

    def answer(self, chat: Mapping[str, Any], body: JsonObject) -> JsonObject:
        """The answer's body. `chat`: OpenAI's `chat.completion`; `body`: what was asked."""

    def events(self, chat: Mapping[str, Any], body: JsonObject) -> Iterator[bytes]:
        """The answer as server-sent events, whole ones with their empty line."""

    def error(self, error: RequestError) -> JsonObject:
        """The body of a refusal."""

    def description(self) -> JsonObject:
        """The POST in OpenAPI 3.1's form (an operation object), without `security`, and with the
        answer of status 200 alone."""


class CountDialect(Protocol):
    """A question of how many tokens a body has, which no engine is asked. Pure."""

    path: str  # POST here

    def request(self, body: JsonObject) -> JsonObject:
        """As a Dialect's."""

    def answer(self, num_tokens: int) -> JsonObject:
        """The answer's body."""

    def error(self, error: RequestError) -> JsonObject:
        """As a Dialect's."""

    def description(self) -> JsonObject:
        """As a Dialect's."""


class ChatCompletions(Dialect):
    """OpenAI's, which is the gateway's own form."""

    path = "/v1/chat/completions"

    def request(self, body: JsonObject, past: Past) -> JsonObject:
        if "prompt" in body:
            raise RequestError("prompt is not served here; expected messages", param="prompt")
        return body

    def streams(self, body: JsonObject) -> bool:
        return bool(body.get("stream"))

    def answer(self, chat: Mapping[str, Any], body: JsonObject) -> JsonObject:
        return dict(chat)

    def events(self, chat: Mapping[str, Any], body: JsonObject) -> Iterator[bytes]:
        include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        for chunk in chat_chunks(chat, include_usage=include_usage):
            yield event(chunk)
        yield b"data: [DONE]\n\n"

    def error(self, error: RequestError) -> JsonObject:
        return openai_error(error)

    def description(self) -> JsonObject:
        return CHAT_COMPLETIONS


def event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + orjson.dumps(data) + b"\n\n"


def openai_error(error: RequestError) -> JsonObject:
    said = {"message": str(error), "type": error.kind, "param": error.param, "code": error.code}
    return {"error": said}
