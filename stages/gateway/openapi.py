"""The gateway's OpenAPI description: what its routes take and answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.version import __version__
from stages.gateway.messages import ROLES

if TYPE_CHECKING:
    from stages.gateway.dialect import CountDialect, Dialect

_TEXT_OR_PARTS = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"enum": ["text", "input_text", "output_text"]},
                    "text": {"type": "string"},
                },
                "required": ["type", "text"],
            },
        },
    ]
}
_CALL = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
_MESSAGE = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "role": {"enum": [role for role in ROLES if role != "assistant"]},
                "content": _TEXT_OR_PARTS,
            },
            "required": ["role", "content"],
        },
        {
            "type": "object",
            "properties": {
                "role": {"const": "assistant"},
                "content": {"anyOf": [*_TEXT_OR_PARTS["anyOf"], {"type": "null"}]},
                "tool_calls": {"type": "array", "items": _CALL},
            },
            "required": ["role"],
        },
    ]
}
_TOOL = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "parameters": {"type": "object"},
            },
            "required": ["name"],
        },
    },
    "required": ["type", "function"],
}
_CHAT = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
        "tools": {"type": "array", "items": _TOOL},
        "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required"]}, _TOOL]},
        "max_tokens": {"type": "integer", "minimum": 1},
        "max_completion_tokens": {"type": "integer", "minimum": 1},
        "n": {"type": "integer", "minimum": 1, "maximum": 128},
        "stop": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}},
            ]
        },
        "stream": {"type": "boolean"},
        "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
        "logprobs": {"type": "boolean"},
        "response_format": {
            "type": "object",
            "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
            "required": ["type"],
        },
    },
    "required": ["messages"],
}
_CHAT_ANSWER = {
    "type": "object",
    "properties": {
        "object": {"const": "chat.completion"},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "index": {"type": "integer"},
                    "message": {"type": "object"},
                    "finish_reason": {"enum": ["stop", "length", "tool_calls"]},
                },
                "required": ["index", "message", "finish_reason"],
            },
        },
        "usage": {"type": "object"},
    },
    "required": ["id", "object", "created", "model", "choices", "usage"],
}
_REWARD = {"anyOf": [{"type": "number"}, {"type": "object"}]}

# one of a stream
_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
    "required": ["data"],
}


def operation(
    summary: str, body: dict[str, Any], answer: dict[str, Any], *, streams: bool = True
) -> dict[str, Any]:
    """A POST of JSON that is answered by JSON, or, if it `streams`, by server-sent events."""
    events = {"text/event-stream": {"schema": _EVENT}} if streams else {}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "the answer",
                "content": {"application/json": {"schema": answer}, **events},
            }
        },
    }


CHAT_COMPLETIONS = operation("OpenAI's chat completions", _CHAT, _CHAT_ANSWER)
_MODELS = {
    "summary": "the model under training",
    "responses": {
        "200": {
            "description": "a list of one",
            "content": {"application/json": {"schema": {"type": "object", "required": ["data"]}}},
        }
    },
}
_POST_REWARD = operation(
    "the rollout's reward; the last one posted counts",
    {"type": "object", "properties": {"reward": _REWARD}, "required": ["reward"]},
    {"type": "object", "required": ["id", "reward"]},
) | {
    "parameters": [
        {"name": "rollout", "in": "path", "required": True, "schema": {"type": "string"}}
    ]
}
_REFUSED = {"400": "not as described", "401": "no token of a rollout", "429": "too many requests"}
_REFUSED_BODY = {"413": "the body is too large", "503": "the engines did not answer"}


def describe(dialects: Sequence[Dialect | CountDialect]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths = {dialect.path: {"post": _secured(dialect.description())} for dialect in dialects}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Slipstream's gateway", "version": __version__},
        "paths": {
            **paths,
            "/v1/models": {"get": _secured(_MODELS)},
            "/v1/rollouts/{rollout}/reward": {
                "post": _secured(_POST_REWARD, {"403": "of another rollout"})
            },
        },
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            }
        },
    }


def _secured(operation: dict[str, Any], refused: dict[str, str] | None = None) -> dict[str, Any]:
    """With what a request may be refused with."""
    reasons = {
        **_REFUSED,
        **(_REFUSED_BODY if "requestBody" in operation else {}),
        **(refused or {}),
    }
    content = {"application/json": {"schema": {"type": "object"}}}
    answers = {status: {"description": why, "content": content} for status, why in reasons.items()}
    return {
        **operation,
        "responses": {**operation["responses"], **answers},
        "security": [{"bearer": []}, {"key": []}],
    }
