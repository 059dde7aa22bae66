"""/v1/messages, Anthropic's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.gateway.dialect import Dialect, JsonObject, event
from stages.gateway.errors import RequestError
from stages.gateway.past import Past
from stages.gateway.protocols.descriptions import COUNT_TOKENS, MESSAGES
from stages.gateway.protocols.messages_answer import anthropic_error, message, message_events
from stages.gateway.protocols.messages_request import chat_request, prompt_request


class Messages(Dialect):
    path = "/v1/messages"

    def request(self, body: JsonObject, past: Past) -> JsonObject:
        return chat_request(body)

    def streams(self, body: JsonObject) -> bool:
        return bool(body.get("stream"))

    def answer(self, chat: Mapping[str, Any], body: JsonObject) -> JsonObject:
        return message(chat)

    def events(self, chat: Mapping[str, Any], body: JsonObject) -> Iterator[bytes]:
        for made in message_events(message(chat)):
            yield event(made, made["type"])

    def error(self, error: RequestError) -> JsonObject:
        return anthropic_error(error)

    def description(self) -> JsonObject:
        return MESSAGES


class MessageTokens:
    """Counts what /v1/messages would read."""

    path = "/v1/messages/count_tokens"

    def request(self, body: JsonObject) -> JsonObject:
        return prompt_request(body)

    def answer(self, num_tokens: int) -> JsonObject:
        return {"input_tokens": num_tokens}

    def error(self, error: RequestError) -> JsonObject:
        return anthropic_error(error)

    def description(self) -> JsonObject:
        return COUNT_TOKENS
