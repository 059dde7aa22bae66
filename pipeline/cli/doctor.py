"""`python -m pipeline doctor template MODEL`: what can be said of a model for agents before it
runs, on a CPU and without its weights."""

from __future__ import annotations

import argparse
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError


def add_parser(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor", help="what a model's chat template does to an agent's turns"
    )
    kinds = doctor.add_subparsers(dest="kind", required=True, metavar="KIND")
    template = kinds.add_parser(
        "template",
        help="says of every kind of chat whether turns are only ever appended, and where they fork",
    )
    template.add_argument("model", metavar="MODEL", help="as --hf-checkpoint has it")
    template.add_argument(
        "--tools",
        metavar="FILE",
        help="a Python file: its list TOOLS, or else its public functions [one function, f(words)]",
    )
    template.add_argument(
        "--tool-call-parser", default="auto", metavar="NAME", help="as in training [auto]"
    )
    template.add_argument(
        "--apply-chat-template-kwargs",
        default="{}",
        metavar="JSON",
        help='further values for the template, such as {"enable_thinking": false}',
    )
    template.set_defaults(run=_template)


def _template(args: argparse.Namespace) -> None:
    for line in template_lines(
        read_tokenizer(args.model),
        args.model,
        tools_of(args.tools),
        args.tool_call_parser,
        args.apply_chat_template_kwargs,
    ):
        print(line)


def template_lines(
    tokenizer: Any, name: str, tools: Sequence[Any], parser: str = "auto", arguments: str = "{}"
) -> Iterator[str]:
    """What is shown. Raises ConfigError for a tokenizer without a chat template."""
    from pipeline.cli.template_check import CHATS, TemplateCheck
    from pipeline.wiring.tool_calls import call_parser

    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"{name}: its tokenizer has no chat template, so agents cannot use it")
    check = TemplateCheck(tokenizer, tools, call_parser(parser), **json.loads(arguments))
    written = check.template.format if parser == "auto" else parser
    told = "its template" if check.template.shows_tools else "a system message in Hermes's words"
    yield f"{name}: told of tools by {told}; calls are read as {written}"
    yield f"  a turn is closed by {check.template.closing!r}"
    width, words = max(map(len, CHATS)), Counter[str]()
    for kind, verdict in check.verdicts():
        yield f"  {kind:<{width}}  {verdict.word}"
        words[verdict.word] += 1
        for line in verdict.problem:
            yield f"      {line}"
    if words["forks"]:
        yield (
            f"{words['forks']} of {len(CHATS)} kinds of chat fork: there a sample becomes several,"
            " unless open_agent(..., keeps_turns=True)"
        )
    elif words["append-only"] == len(CHATS):
        yield "append-only: what was sampled stays in the context, token for token"


def read_tokenizer(model: str) -> Any:
    """The tokenizer alone, where the model need not be made for it."""
    from transformers import AutoTokenizer

    from pipeline.core.find_checkpoint import is_hub_name

    if not is_hub_name(model):
        from pipeline.models.resolve import resolve_checkpoint

        model = str(resolve_checkpoint(model))
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{model}: no tokenizer can be read there: {error}") from error


def tools_of(file: str | None) -> list[Any]:
    from stages.generate.tools.tool import Tool, tool_from_function

    if file is None:
        return [tool_from_function(_words, name="f")]
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise ConfigError(f"--tools {file}: no such file")
    from pipeline.core.user_modules import import_user_file

    module = import_user_file(path)
    found = getattr(module, "TOOLS", None) or [
        member
        for name, member in inspect.getmembers(module, inspect.isroutine)
        if member.__module__ == module.__name__ and not name.startswith("_")
    ]
    if not found:
        raise ConfigError(f"--tools {file}: it has neither a list TOOLS nor a public function")
    return [tool if isinstance(tool, Tool) else tool_from_function(tool) for tool in found]


def _words(words: str) -> str:
    """Does something."""
    return words
