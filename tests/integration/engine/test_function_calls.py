"""SGLang's own parsers of tool calls, and ours beside them. In a process that has loaded SGLang."""

from __future__ import annotations

import json

import pytest

from pipeline.wiring.tool_calls import call_parser
from stages.generate.tools.calls import Call, GarbledCall, ParsedTurn
from stages.generate.tools.formats import PARSERS
from stages.generate.tools.tool import tool_from_function


def book(city: str, nights: int = 1) -> str:
    return ""


pytestmark = pytest.mark.slow
TOOLS = [tool_from_function(book)]


def test_a_format_that_only_sglang_knows() -> None:
    parse = call_parser("mistral")
    assert not isinstance(parse, str)
    assert parse("Two nights.", TOOLS) == ParsedTurn("Two nights.")
    text = 'Hm.[TOOL_CALLS] [{"name": "book", "arguments": {"city": "Rome", "nights": 2}}]'
    content, calls = parse(text, TOOLS)
    assert content.strip() == "Hm."
    assert calls == (Call(name="book", arguments={"city": "Rome", "nights": 2}),)
    unknown = json.dumps([{"name": "cook", "arguments": {}}])
    (call,) = parse(f"[TOOL_CALLS] {unknown}", TOOLS).calls
    assert call == Call(name="cook", arguments={})  # the model is told that there is none
    (garbled,) = parse("[TOOL_CALLS] [{nothing", TOOLS).calls
    assert isinstance(garbled, GarbledCall)


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "glm45", "llama3"])
def test_our_formats_read_what_sglangs_do(name: str) -> None:
    from stages.engine.function_calls import read_function
    from tests.unit.stages.generate.tools.test_formats import WRITTEN

    read = read_function(name)
    for text in (WRITTEN[name], "No call."):
        ours = PARSERS[name](text, TOOLS)
        theirs = read(text, [tool.definition for tool in TOOLS])
        assert [(c.name, c.arguments) for c in ours.calls if isinstance(c, Call)] == [
            (called, json.loads(arguments)) for called, arguments in theirs.calls
        ]
