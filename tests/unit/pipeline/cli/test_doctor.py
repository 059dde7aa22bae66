"""`doctor template`, over chat templates that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.doctor import template_lines, tools_of
from pipeline.cli.main import parser
from pipeline.core.errors import ConfigError
from stages.engine.mock_tokenizer import MockTokenizer
from tests.unit.stages.generate.tools.chatml import ChatML

KINDS = 7


def lines(tokenizer: Any, *more: str, tools: str | None = None) -> list[str]:
    return list(template_lines(tokenizer, "a model", tools_of(tools), *more))


def test_a_template_that_only_appends() -> None:
    head, closed, *kinds, verdict = lines(ChatML())
    assert head == "a model: told of tools by its template; calls are read as hermes"
    assert closed == r"  a turn is closed by '<|im_end|>\n'"
    assert len(kinds) == KINDS and all(line.endswith("  append-only") for line in kinds)
    assert verdict.startswith("append-only")


def test_a_template_that_forgets_the_thinking() -> None:
    said = lines(ChatML(forgets=True))
    at = next(i for i, line in enumerate(said) if line.endswith("  forks"))
    assert said[at].split("  ")[1] == "a second question, thinking"
    assert said[at + 1].endswith(r"<|im_start|>assistant\n<think>\nA thought.\n</think>\n\nOne.'")
    assert r"<|im_start|>assistant\nOne.<|im_end|>" in said[at + 2]
    assert sum("append-only" in line for line in said) == KINDS - 1
    assert said[-1].startswith(f"1 of {KINDS} kinds of chat fork")


def test_a_template_without_tools() -> None:
    said = lines(ChatML(knows_tools=False))
    assert "told of tools by a system message in Hermes's words; calls are read as herm" in said[0]
    assert said[-1].startswith("append-only")


def test_a_format_that_is_not_the_templates() -> None:
    said = lines(ChatML(), "llama3")
    assert sum(line.endswith("  not read as calls") for line in said) == 5
    assert not said[-1].startswith("append-only")


def test_a_template_that_refuses() -> None:
    class Strict(ChatML):
        def apply_chat_template(self, messages: Any, **more: Any) -> Any:  # type: ignore[override]
            roles = [m["role"] for m in messages]
            if "assistant" in roles[:-1]:
                raise ValueError("one turn only")
            return super().apply_chat_template(messages, **more)

    said = lines(Strict())
    assert sum(line.endswith("  refused") for line in said) == KINDS
    assert "ValueError: one turn only" in said[3]


def test_no_chat_template() -> None:
    class Bare(MockTokenizer):
        chat_template = ""

    with pytest.raises(ConfigError, match="a model: its tokenizer has no chat template"):
        lines(Bare())


def test_tools_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my_tools.py"
    file.write_text(
        "from math import sqrt\ndef _hidden(x): ...\n"
        "async def look(at: str, times: int) -> str: ...\ndef add(a: int) -> int: ...\n"
    )
    assert [tool.name for tool in tools_of(str(file))] == ["add", "look"]
    (other := tmp_path / "other.py").write_text(
        "def add(a: int) -> int: ...\ndef no(x): ...\nTOOLS = [add]\n"
    )
    assert [tool.name for tool in tools_of(str(other))] == ["add"]
    assert lines(ChatML(), tools=str(file))[-1].startswith("append-only")
    (empty := tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="neither a list TOOLS nor a public function"):
        tools_of(str(empty))
    with pytest.raises(ConfigError, match="no such file"):
        tools_of(str(tmp_path / "missing.py"))


def test_the_command_line() -> None:
    args = parser().parse_args(["doctor", "template", "some/model", "--tools", "f.py"])
    assert (args.model, args.tools, args.tool_call_parser) == ("some/model", "f.py", "auto")
