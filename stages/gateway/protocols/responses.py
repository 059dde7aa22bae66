"""/v1/responses, what OpenAI's newer clients speak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stages.gateway.dialect import Dialect, JsonObject, event, openai_error
from stages.gateway.errors import RequestError
from stages.gateway.past import Past
from stages.gateway.protocols import fields
from stages.gateway.protocols.descriptions import RESPONSES
from stages.gateway.protocols.responses_answer import response, response_id
from stages.gateway.protocols.responses_events import response_events
from stages.gateway.protocols.responses_request import chat_request, input_messages


class Responses(Dialect):
    path = "/v1/responses"

    def request(self, body: JsonObject, past: Past) -> JsonObject:
        before = fields.optional_string(body, "previous_response_id")
        fields.a_flag(body, "store")
        return chat_request(body, past.messages(before))

    def keep(self, chat: Mapping[str, Any], body: JsonObject, past: Past) -> None:
        if body.get("store") is not False:
            turn = chat["choices"][0]["message"]
            messages = [*input_messages(body), turn]
            past.keep(response_id(chat), body.get("previous_response_id"), messages)

    def streams(self, body: JsonObject) -> bool:
        return bool(body.get("stream"))

    def answer(self, chat: Mapping[str, Any], body: JsonObject) -> JsonObject:
        return response(chat, body)

    def events(self, chat: Mapping[str, Any], body: JsonObject) -> Iterator[bytes]:
        for made in response_events(response(chat, body)):
            yield event(made, made["type"])

    def error(self, error: RequestError) -> JsonObject:
        return openai_error(error)

    def description(self) -> JsonObject:
        return RESPONSES
