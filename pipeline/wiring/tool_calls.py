"""--tool-call-parser: formats of our own by their names, SGLang's parsers for all others."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import ConfigError
from stages.engine.function_calls import parser_names, read_function
from stages.generate.tools.calls import CallParser, GarbledCall, ParsedTurn, named_call
from stages.generate.tools.formats import PARSERS
from stages.generate.tools.tool import Tool


def call_parser(name: str) -> str | CallParser:
    """What agents find in `args.tool_call_parser`: "auto" and the names of our own formats stay
    names. Raises ConfigError for a name that nobody knows."""
    if name == "auto" or name in PARSERS:
        return name
    known = parser_names()
    if name not in known:
        raise ConfigError(
            f"--tool-call-parser {name}: expected auto, {', '.join(sorted({*PARSERS, *known}))}"
        )
    return _of_sglang(name)


def _of_sglang(name: str) -> CallParser:
    read = read_function(name)

    def parse(text: str, tools: Sequence[Tool]) -> ParsedTurn:
        said = read(text, [tool.definition for tool in tools])
        if said.error is not None:
            return ParsedTurn(text, (GarbledCall(text=text, error=said.error),))
        calls = [named_call(named, arguments, text) for named, arguments in said.calls]
        return ParsedTurn(said.content, tuple(calls))

    return parse
