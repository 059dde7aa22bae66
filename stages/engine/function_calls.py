"""SGLang's parsers of tool calls, for the formats that only they know."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple


class ReadCalls(NamedTuple):
    """What one of them made of a turn."""

    content: str
    calls: Sequence[tuple[str, str]]  # name, arguments as JSON
    # why what looks like a call is none that can be read
    error: str | None = None


# (a turn's text, the tools as OpenAI's API has them) -> what is in it
ReadFunction = Callable[[str, Sequence[Mapping[str, Any]]], ReadCalls]


def parser_names() -> Sequence[str]:
    """Their names, read from SGLang's source: importing it would take seconds."""
    spec = find_spec("sglang")
    if spec is None or spec.origin is None:
        return ()
    file = Path(spec.origin).parent / "srt" / "function_call" / "parser_names.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return ast.literal_eval(lists[0]) if lists else ()


def read_function(name: str) -> ReadFunction:
    """SGLang's parser of this name. Importing it takes seconds. Calls of tools that are not there
    are read like any other."""
    from sglang.srt.entrypoints.openai.protocol import Tool
    from sglang.srt.environ import envs
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    def read(text: str, tools: Sequence[Mapping[str, Any]]) -> ReadCalls:
        parser = FunctionCallParser([Tool(**tool) for tool in tools], name)
        if not parser.has_tool_call(text):
            return ReadCalls(text, ())
        with envs.SGLANG_FORWARD_UNKNOWN_TOOLS.override(True):
            try:
                content, calls = parser.parse_non_stream(text)
            except Exception as error:  # parsers of forty kinds
                return ReadCalls(text, (), f"{type(error).__name__}: {error}")
        if not calls:
            return ReadCalls(text, (), f"it is not in the format that {name} reads")
        return ReadCalls(content, [(call.name or "", call.parameters) for call in calls])

    return read
