"""The protocols' bodies in OpenAPI's form: what is served of them."""

from __future__ import annotations

from typing import Any

from stages.gateway.openapi import operation

Schema = dict[str, Any]

_NAME: Schema = {"type": "string", "minLength": 1}
_TEXT: Schema = {"type": "string"}
_OBJECT: Schema = {"type": "object"}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 1}


def _record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """`optional`: what may be absent, or null."""
    more = {name: _either(schema, {"type": "null"}) for name, schema in (optional or {}).items()}
    return {"type": "object", "properties": {**required, **more}, "required": list(required)}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _kind(
    name: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None
) -> Schema:
    return _record({"type": {"const": name}, **required}, optional)


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


_STOPS = _list(_NAME)

# -- /v1/completions

_IDS = _list({"type": "integer", "minimum": 0}, minItems=1)
_PROMPT = _either(_NAME, _IDS, _list(_either(_NAME, _IDS), minItems=1, maxItems=1))
COMPLETIONS = operation(
    "OpenAI's completions: a prompt without a chat template",
    _record(
        {"prompt": _PROMPT},
        {
            "model": _TEXT,
            "max_tokens": _COUNT,
            "n": {"type": "integer", "minimum": 1, "maximum": 128},
            "stop": _either(_NAME, _STOPS),
            "logprobs": {"const": 0},
            "stream": _FLAG,
        },
    ),
    _record({"id": _TEXT, "object": {"const": "text_completion"}, "choices": _list(_OBJECT)}),
)

# -- /v1/responses

_PART = _record({"type": {"enum": ["input_text", "output_text"]}, "text": _TEXT})
_CONTENT = _either(_TEXT, _list(_PART))
_ROLES: Schema = {"enum": ["user", "assistant", "system", "developer"]}
_ITEM = _either(
    {
        "type": "object",
        "properties": {"type": {"const": "message"}, "role": _ROLES, "content": _CONTENT},
        "required": ["role", "content"],
    },
    _kind("function_call", {"call_id": _NAME, "name": _NAME, "arguments": _TEXT}),
    _kind("function_call_output", {"call_id": _NAME, "output": _CONTENT}),
)
_FUNCTION = _kind("function", {"name": _NAME}, {"description": _TEXT, "parameters": _OBJECT})
RESPONSES = operation(
    "OpenAI's responses",
    _record(
        {"input": _either(_TEXT, _list(_ITEM, minItems=1))},
        {
            "model": _TEXT,
            "instructions": _TEXT,
            "max_output_tokens": _COUNT,
            "tools": _list(_FUNCTION),
            "tool_choice": {"enum": ["auto", "none", "required"]},
            "stream": _FLAG,
            "store": _FLAG,
        },
    ),
    _record({"id": _TEXT, "object": {"const": "response"}, "output": _list(_OBJECT)}),
)

# -- /v1/messages

_BLOCK = _kind("text", {"text": _TEXT})
_BLOCKS = _either(_TEXT, _list(_BLOCK))
_RESULT = _kind("tool_result", {"tool_use_id": _NAME}, {"content": _BLOCKS})
_USE = _kind("tool_use", {"id": _NAME, "name": _NAME, "input": _OBJECT})
_THOUGHT = _kind("thinking", {"thinking": _TEXT}, {"signature": {}})
_USER = _record(
    {"role": {"const": "user"}, "content": _either(_TEXT, _list(_either(_BLOCK, _RESULT)))}
)
_ASSISTANT = _record(
    {
        "role": {"const": "assistant"},
        "content": _either(_TEXT, _list(_either(_BLOCK, _USE, _THOUGHT))),
    }
)
# The last one is the user's, which a schema cannot say of a list of any length.
_TURNS: Schema = _either(
    _list(_USER, minItems=1),
    {"type": "array", "prefixItems": [_USER, _ASSISTANT, _USER], "items": _USER, "minItems": 3},
)
_TOOL = _record({"name": _NAME, "input_schema": _OBJECT}, {"description": _TEXT})
_CHOICE = _record({"type": {"enum": ["auto", "any", "none"]}})
_PROMPT_FIELDS: dict[str, Schema] = {
    "model": _TEXT,
    "system": _BLOCKS,
    "tools": _list(_TOOL),
    "tool_choice": _CHOICE,
}
MESSAGES = operation(
    "Anthropic's messages",
    _record(
        {"messages": _TURNS, "max_tokens": _COUNT},
        {**_PROMPT_FIELDS, "stop_sequences": _STOPS, "stream": _FLAG},
    ),
    _record({"id": _TEXT, "type": {"const": "message"}, "content": _list(_OBJECT)}),
)
COUNT_TOKENS = operation(
    "how many tokens a message would read",
    _record({"messages": _TURNS}, _PROMPT_FIELDS),
    _record({"input_tokens": {"type": "integer"}}),
    streams=False,
)
