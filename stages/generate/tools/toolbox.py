"""Runs the calls of a turn. Whatever goes wrong with one is something for the model to read, and is
counted; it is never the end of the rollout."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from pipeline.core.deadline import Deadline, EpisodeTimeoutError
from pipeline.core.errors import ConfigError
from pipeline.core.protocols import Tokenizer
from pipeline.core.user_errors import ANY_FAILURE, told
from stages.generate.tools.calls import Call, GarbledCall
from stages.generate.tools.tool import Tool, as_text, tool_from_function

MAX_CALLS_A_TURN = 32
MAX_ERROR_CHARACTERS = 500
# a tokenizer takes seconds for megabytes: no more of them are shown to it than this, a token
_MOST_CHARACTERS_A_TOKEN = 16
FLAG = "--tool-timeout-seconds"


class _CallError(Exception):
    """What is wrong with a call: its kind, under which it is counted, and words for the model."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


class Toolbox:
    """The tools of one agent. `errors`: how many calls went wrong, by kind: garbled, unknown,
    arguments, too_many, timeout, raised. `num_cut`: outputs that were too long."""

    def __init__(
        self,
        tools: Sequence[Tool | Callable[..., Any]],
        tokenizer: Tokenizer,
        *,
        timeout_seconds: float | None,
        max_output_tokens: int,
    ) -> None:
        """`timeout_seconds`: of a call whose tool has no deadline of its own. Raises ConfigError
        for two tools of one name, or for a function that cannot be one."""
        self.tools = tuple(t if isinstance(t, Tool) else tool_from_function(t) for t in tools)
        self._by_name = {tool.name: tool for tool in self.tools}
        if len(self._by_name) < len(self.tools):
            names = [tool.name for tool in self.tools]
            raise ConfigError(f"two tools have the same name: {', '.join(names)}")
        self._tokenizer = tokenizer
        self._timeout_seconds, self._max_output_tokens = timeout_seconds, max_output_tokens
        self._validators = {tool.name: _validator(tool) for tool in self.tools}
        self.num_calls = self.num_cut = 0
        self.errors: Counter[str] = Counter()

    async def answer(self, calls: Sequence[Call | GarbledCall]) -> list[str]:
        """What the model reads of every call, in their order. All run at once."""
        self.num_calls += len(calls)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._one(call, place)) for place, call in enumerate(calls)]
        return [task.result() for task in tasks]

    async def _one(self, call: Call | GarbledCall, place: int) -> str:
        try:
            if place >= MAX_CALLS_A_TURN:
                raise _CallError("too_many", f"more than {MAX_CALLS_A_TURN} calls in one turn")
            return self.cut(await self._run(call))
        except _CallError as error:
            self.errors[error.kind] += 1
            return _encodable(f"error: {str(error)[:MAX_ERROR_CHARACTERS]}")

    async def _run(self, call: Call | GarbledCall) -> str:
        if isinstance(call, GarbledCall):
            raise _CallError("garbled", f"this call cannot be read: {call.error}")
        tool = self._by_name.get(call.name)
        if tool is None:
            known = ", ".join(self._by_name) or "none"
            raise _CallError("unknown", f"no tool is named {call.name!r}; there are: {known}")
        self._check(tool, call)
        seconds = self._timeout_seconds if tool.timeout_seconds is None else tool.timeout_seconds
        try:
            return await Deadline(seconds, FLAG).within(_called(tool, call))
        except EpisodeTimeoutError:
            raise _CallError("timeout", f"{tool.name} took more than {seconds:g} s") from None

    def _check(self, tool: Tool, call: Call) -> None:
        from jsonschema.exceptions import best_match

        wrong = best_match(self._validators[tool.name].iter_errors(call.arguments))
        if wrong is not None:
            at = f" at {wrong.json_path}" if wrong.path else ""
            raise _CallError("arguments", f"{tool.name} takes other arguments: {wrong.message}{at}")

    def cut(self, text: str) -> str:
        """As much of the text as the model reads of one output."""
        limit, text = self._max_output_tokens, _encodable(text)
        if len(text) <= limit and len(text.encode()) <= limit:
            return text  # no token is less than a byte
        shown = text[: limit * _MOST_CHARACTERS_A_TOKEN]
        ids = self._tokenizer.encode(shown, add_special_tokens=False)
        if len(ids) <= limit and len(shown) == len(text):
            return text
        self.num_cut += 1
        kept = self._tokenizer.decode(ids[:limit], skip_special_tokens=False).rstrip("\ufffd")
        return f"{kept}\n[cut: {len(kept)} of {len(text)} characters are shown]"


def _encodable(text: str) -> str:
    """Without lone surrogates, which are in no encoding (a tool may read a file's odd name)."""
    return text.encode(errors="replace").decode()


def _validator(tool: Tool) -> Any:
    try:
        return _validator_of(json.dumps(tool.parameters, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the parameters of the tool {tool.name}: {error}") from error


@lru_cache(maxsize=1024)  # every episode has the same tools
def _validator_of(schema: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError  # not for those who have no tool

    try:
        Draft202012Validator.check_schema(json.loads(schema))
    except SchemaError as error:
        raise ValueError(f"no JSON schema: {error.message}") from error
    return Draft202012Validator(json.loads(schema))


async def _called(tool: Tool, call: Call) -> str:
    """Inside of its deadline's task, out of which no SystemExit may come."""
    try:
        with told(tool.call, f"the tool {tool.name}"):
            # a copy: the call itself is part of the chat
            return as_text(await tool.call(copy.deepcopy(call.arguments)))
    except _CallError:
        raise
    except ANY_FAILURE as error:
        text = f": {error}" if str(error) else ""
        raise _CallError("raised", f"{tool.name} failed: {type(error).__name__}{text}") from None
