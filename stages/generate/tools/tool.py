"""A tool: what the model is told of it, and what happens when it is called."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from pipeline.core.errors import ConfigError
from pipeline.core.threads import in_thread
from stages.generate.tools.docstring import parse_docstring
from stages.generate.tools.schema import Schema, object_schema, schema_of, value_of

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # what chat templates and their parsers agree on


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """`await tool.call(arguments)` is the text that the model reads. `arguments` are valid under
    `parameters`; whoever calls has checked them."""

    name: str
    description: str
    parameters: Schema  # the JSON schema of an object
    call: Callable[[dict[str, Any]], Awaitable[str]]
    timeout_seconds: float | None = None  # of one call; None: the session's

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"a tool is named {self.name!r}: expected 1 to 64 letters, digits, _ . or -"
            )

    @property
    def definition(self) -> dict[str, Any]:
        """As chat templates and OpenAI's API take it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }


def tool_from_function(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    timeout_seconds: float | None = None,
) -> Tool:
    """A tool of a plain Python function: its schema is made of the signature, and of what the
    docstring says of the parameters (Google's, NumPy's or Sphinx's form).

    An async function is awaited on the event loop; any other runs in a thread, where it may block.
    What it returns is read as text, or as the JSON of anything else. Raises ConfigError for a
    parameter that no JSON schema says."""
    name = str(name or getattr(function, "__name__", type(function).__name__))
    said = parse_docstring(inspect.getdoc(function))
    kinds = _kinds(function, name)
    signature = inspect.signature(function).parameters
    properties = {
        key: _property(kind, signature[key].default, said.parameters.get(key), f"{name}({key})")
        for key, kind in kinds.items()
    }
    required = [key for key in kinds if signature[key].default is inspect.Parameter.empty]
    target = function if inspect.isroutine(function) else type(function).__call__
    is_async = inspect.iscoroutinefunction(inspect.unwrap(target))

    async def call(arguments: dict[str, Any]) -> str:
        given = {key: value_of(kinds[key], value) for key, value in arguments.items()}
        if is_async:
            return as_text(await function(**given))
        return as_text(await in_thread(lambda: function(**given)))

    vars(call)["__wrapped__"] = function  # whose file and line is named where it raises
    return Tool(
        name=name,
        description=said.description if description is None else description,
        parameters=object_schema(properties, required),
        call=call,
        timeout_seconds=timeout_seconds,
    )


def as_text(value: Any) -> str:
    """What a tool returned, as the model reads it: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _kinds(function: Callable[..., Any], name: str) -> Mapping[str, Any]:
    """The type of every parameter."""
    target = function if inspect.isroutine(function) else type(function).__call__
    try:
        hints = get_type_hints(inspect.unwrap(target), include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"the annotations of the tool {name} cannot be read: {error}") from error
    kinds = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"the tool {name} takes {str(parameter).split(':')[0]}: a model gives arguments by"
                " name, so expected parameters with a name and a type each"
            )
        if key not in hints:
            raise ConfigError(
                f"the parameter {key} of the tool {name} has no type: write {name}({key}: str, ...)"
            )
        kinds[key] = hints[key]
    return kinds


def _property(kind: Any, default: Any, words: str | None, place: str) -> Schema:
    schema = schema_of(kind, place)
    if words:
        schema = {**schema, "description": words}
    if default is not inspect.Parameter.empty and _is_json(default):
        schema = {**schema, "default": default}
    return schema


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
