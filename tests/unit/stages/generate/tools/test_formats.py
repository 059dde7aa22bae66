"""Tool calls, as models write them."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from pipeline.core.errors import ConfigError
from stages.generate.tools.calls import Call, GarbledCall
from stages.generate.tools.formats import PARSERS, detect_format
from stages.generate.tools.tool import tool_from_function


def book(city: str, nights: int, pets: bool | None = None, kinds: list[str] = []) -> str:  # noqa: B006
    return ""


TOOLS = [tool_from_function(book)]
ROME = {"city": "Rome", "nights": 2}
BAR = "\uff5c"


def deepseek(words: str) -> str:
    return f"<{BAR}{words.replace(' ', '▁')}{BAR}>"


V3_CALL = (
    f"{deepseek('tool call begin')}function{deepseek('tool sep')}book\n```json\n"
    '{"city": "Rome", "nights": 2}\n```' + deepseek("tool call end")
)
V31_CALL = (
    f"{deepseek('tool call begin')}book{deepseek('tool sep')}"
    '{"city": "Rome", "nights": 2}' + deepseek("tool call end")
)
XML = """<tool_call>
<function=book>
<parameter=city>
Rome
</parameter>
<parameter=nights>
2
</parameter>
</function>
</tool_call>"""
GLM = """<tool_call>book
<arg_key>city</arg_key>
<arg_value>Rome</arg_value>
<arg_key>nights</arg_key>
<arg_value>2</arg_value>
</tool_call>"""
JSON = '{"name": "book", "arguments": {"city": "Rome", "nights": 2}}'
PARAMETERS = '{"name": "book", "parameters": {"city": "Rome", "nights": 2}}'
WRITTEN = {
    "hermes": f"<tool_call>\n{JSON}\n</tool_call>",
    "qwen3_coder": XML,
    "glm45": GLM,
    "llama3": f"<|python_tag|>{PARAMETERS}",
    "deepseekv3": deepseek("tool calls begin") + V3_CALL + deepseek("tool calls end"),
    "deepseekv31": deepseek("tool calls begin") + V31_CALL + deepseek("tool calls end"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_one_call_behind_words(name: str) -> None:
    content, calls = PARSERS[name]("<think>\nhm\n</think>\nI book." + WRITTEN[name], TOOLS)
    assert content == "<think>\nhm\n</think>\nI book."
    assert calls == (Call(name="book", arguments=ROME),)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", f"{WRITTEN['hermes']}\n{WRITTEN['hermes']}"),
        ("qwen3_coder", XML + XML),
        ("glm45", f"{GLM}\n{GLM}"),
        ("llama3", f"{PARAMETERS}; {PARAMETERS}"),
        ("deepseekv3", f"{deepseek('tool calls begin')}{V3_CALL}\n{V3_CALL}"),
    ],
)
def test_several_calls(name: str, text: str) -> None:
    assert PARSERS[name](text, TOOLS).calls == (Call(name="book", arguments=ROME),) * 2


@pytest.mark.parametrize("name", WRITTEN)
def test_an_answer_has_no_call(name: str) -> None:
    for text in ("", "Two nights.", '{"city": "Rome"}', '["name"]', "1 < 2, {x}"):
        assert PARSERS[name](text, TOOLS) == (text, ())


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "glm45"])
def test_a_call_that_is_only_thought_of_is_none(name: str) -> None:
    thought = f"<think>Shall I {WRITTEN[name]}?"
    assert PARSERS[name](thought, TOOLS) == (thought, ())
    whole = f"{thought}</think>No."
    assert PARSERS[name](whole, TOOLS) == (whole, ())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("hermes", "<tool_call>{'name': 'book'}</tool_call>", "not valid JSON"),
        ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>", "not valid JSON"),
        ("hermes", f"<tool_call>{JSON}", "does not end with </tool_call>"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "no name of a tool"),
        ("hermes", '<tool_call>{"name": "b", "arguments": 3}</tool_call>', "no JSON object"),
        ("hermes", '<tool_call>{"name": "b", "arguments": "3"}</tool_call>', "no JSON object"),
        ("qwen3_coder", "<tool_call><function=book></tool_call>", "expected <function="),
        (
            "qwen3_coder",
            "<tool_call><function=book><parameter=city>Rome</function></tool_call>",
            "no part of an argument",
        ),
        ("glm45", "<tool_call><arg_key>a</arg_key></tool_call>", "no name of a tool"),
        ("glm45", "<tool_call>f<arg_key>a</arg_key></tool_call>", "no part of an argument"),
        ("llama3", '{"name": "book", "parameters": {', "not valid JSON"),
        ("llama3", "<|python_tag|>print(1)", "not valid JSON"),
        ("deepseekv3", deepseek("tool calls begin") + "book", "no <"),
        ("deepseekv3", deepseek("tool calls begin") + V3_CALL[:-3], "does not end with"),
        ("deepseekv3", deepseek("tool calls begin") + V3_CALL.replace("2", "two"), "valid JSON"),
    ],
)
def test_a_garbled_call_says_why(name: str, text: str, said: str) -> None:
    (call,) = PARSERS[name](text, TOOLS).calls
    assert isinstance(call, GarbledCall) and said in call.error


def test_good_and_garbled_calls_side_by_side() -> None:
    text = f"<tool_call>{{</tool_call><tool_call>{JSON}</tool_call>"
    garbled, good = PARSERS["hermes"](text, TOOLS).calls
    assert isinstance(garbled, GarbledCall) and good == Call(name="book", arguments=ROME)


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("True", "pets", True),
        ("false", "pets", False),
        ("None", "pets", None),
        ('["a", "b"]', "kinds", ["a", "b"]),
        ("many", "nights", "many"),  # the check against the schema says that it is no number
        ("12", "city", "12"),
        ("null", "city", "null"),
        ("7", "unheard_of", "7"),
        (" two\nlines ", "city", " two\nlines "),
    ],
)
@pytest.mark.parametrize("name", ["qwen3_coder", "glm45"])
def test_bare_values_are_what_the_schema_says(
    name: Literal["qwen3_coder", "glm45"], written: str, key: str, value: Any
) -> None:
    text = (
        f"<tool_call><function=book><parameter={key}>\n{written}\n</parameter></function></tool_call>"
        if name == "qwen3_coder"
        else f"<tool_call>book<arg_key>{key}</arg_key><arg_value>{written}</arg_value></tool_call>"
    )
    assert PARSERS[name](text, TOOLS).calls == (Call(name="book", arguments={key: value}),)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("... <tool_call>\\n<function=example><parameter=a>", "qwen3_coder"),
        ("<tool_call>{name}<arg_key>", "glm45"),
        (deepseek("tool calls begin"), "deepseekv3"),
        ('<tool_call>\\n{"name": <function-name>', "hermes"),
        ("{{ '<|python_tag|>' }}", "llama3"),
        ("""message.tool_calls[0] ... '"parameters": '""", "llama3"),
    ],
)
def test_the_format_is_told_by_the_template(template: str, name: str) -> None:
    assert detect_format(template) == name


def test_a_template_that_does_not_tell() -> None:
    with pytest.raises(ConfigError, match="--tool-call-parser, deepseekv3"):
        detect_format("{% for message in messages %}")
