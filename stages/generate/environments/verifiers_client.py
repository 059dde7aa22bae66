"""What an environment of verifiers asks for turns: it is shown the whole chat every time, and
continues the one that it has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import lru_cache
from typing import Any

from pipeline.core.errors import GenerateError
from pipeline.core.types import Sample
from stages.generate.tools.agent import Agent, Turn, open_agent
from stages.generate.tools.calls import Call
from stages.generate.tools.tool import Tool

Message = dict[str, Any]


class Chat:
    """One rollout's. `agent`: None ahead of the first turn. `error`: what a turn has raised."""

    def __init__(
        self, args: Any, sample: Sample, sampling_params: Mapping[str, Any], stack: AsyncExitStack
    ) -> None:
        self.agent: Agent | None = None
        self.error: Exception | None = None
        self._args, self._sample, self._params = args, sample, sampling_params
        self._stack = stack
        self._known: list[Message] = []  # what was shown, and the turn that followed
        self._turn: Turn | None = None

    async def turn(self, shown: Sequence[Message], tools: Sequence[Any]) -> Turn | None:
        """The next one; None where there is no room, or no turn, left."""
        try:
            if self.agent is None:
                await self._begin(shown, tools)
            elif not self._follow(shown):
                return None
            assert self.agent is not None
            if self.agent.done:
                return None
            self._turn = await self.agent.generate()
        except Exception as error:
            self.error = error
            raise
        self._known = [*shown, said(self._turn)]
        return self._turn

    async def _begin(self, shown: Sequence[Message], tools: Sequence[Any]) -> None:
        self._sample.prompt = [dict(m) for m in shown]
        known = [
            Tool(
                name=t.name,
                description=t.description,
                parameters=dict(t.parameters),
                call=_called_by_its_environment,
            )
            for t in tools
        ]
        opened = open_agent(self._args, self._sample, self._params, tools=known)
        self.agent = await self._stack.enter_async_context(opened)

    def _follow(self, shown: Sequence[Message]) -> bool:
        assert self.agent is not None and self._turn is not None
        place = len(self._known)
        if [_gist(m) for m in shown[:place]] != [_gist(m) for m in self._known]:
            raise GenerateError(
                "the environment has rewritten what was said before: only what it adds can be"
                " trained token for token"
            )
        new = list(shown[place:])
        answers = {m["tool_call_id"]: m["content"] for m in new if m["role"] == "tool"}
        if not answers:
            return self.agent.say(*new)
        calls = self._turn.calls
        texts = [
            str(answers.get(call_id(at), "no answer"))
            if isinstance(call, Call)
            else f"error: this call cannot be read: {call.error}"
            for at, call in enumerate(calls)
        ]
        texts = [self.agent.toolbox.cut(text) for text in texts]
        rest = [m for m in new if m["role"] != "tool"]
        return self.agent.say(*self.agent.observations(calls, texts), *rest)


def said(turn: Turn) -> Message:
    calls = [
        {"id": call_id(place), "name": call.name, "arguments": json.dumps(call.arguments)}
        for place, call in enumerate(turn.calls)
        if isinstance(call, Call)
    ]
    message: Message = {"role": "assistant", "content": turn.text}
    return {**message, "tool_calls": calls} if calls else message


def call_id(place: int) -> str:
    return f"call_{place}"


def client_of(chat: Chat, loop: asyncio.AbstractEventLoop) -> Any:
    """A client of verifiers whose turns are made on `loop`, where the engines are asked."""
    return _client_class()(chat, loop)


@lru_cache(maxsize=1)
def _client_class() -> Any:
    from verifiers.clients import Client
    from verifiers.errors import OverlongPromptError
    from verifiers.types import Response, ResponseMessage

    class TokenClient(Client):
        def __init__(self, chat: Chat, loop: asyncio.AbstractEventLoop) -> None:
            super().__init__(None)
            self._chat, self._loop = chat, loop

        async def get_response(
            self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **more: Any
        ) -> Any:
            """What it samples by is the run's own (--rollout-temperature ...)."""
            turn = self._chat.turn([_plain(m) for m in prompt], tools or ())
            made = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turn, self._loop))
            if made is None:
                raise OverlongPromptError("no turn, or no room, is left")
            cut = made.completion.finish_reason == "length"
            message = said(made)
            reason = "length" if cut else "tool_calls" if "tool_calls" in message else "stop"
            return Response(
                id="",
                created=0,
                model=model,
                message=ResponseMessage(**message, finish_reason=reason, is_truncated=cut),
            )

        async def _none(self, *given: Any, **named: Any) -> Any:
            raise NotImplementedError("turns are asked for with get_response")

        setup_client = to_native_tool = to_native_prompt = get_native_response = _none
        raise_from_native_response = from_native_response = _none

        async def close(self) -> None:
            """There is nothing to close."""

    return TokenClient


def _plain(message: Any) -> Message:
    return dict(message if isinstance(message, dict) else message.model_dump(exclude_none=True))


def _gist(message: Message) -> tuple[Any, ...]:
    calls = [(c["name"], c["arguments"]) for c in message.get("tool_calls") or ()]
    return message["role"], message.get("content") or "", calls


async def _called_by_its_environment(arguments: dict[str, Any]) -> str:
    raise GenerateError("tools of an environment are called by it")
