"""How a model and an environment speak with each other: as a chat, where the model has a template
for that, else in one text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from pipeline.core.errors import GenerateError
from pipeline.core.types import Sample
from stages.generate.session import Session, open_session
from stages.generate.tools.agent import Agent, open_agent
from stages.generate.tools.toolbox import Toolbox

Message = dict[str, Any]


class Talk(Protocol):
    samples: list[Sample]  # what has been said

    @property
    def done(self) -> bool:
        """Is no further turn possible?"""

    async def act(self) -> str:
        """One turn of the model's."""

    def observe(self, messages: Sequence[Message]) -> bool:
        """Appends what the environment says, with loss mask 0. False: there is no room, or no turn,
        for that, and the sample is truncated."""


@asynccontextmanager
async def open_talk(
    args: Any, sample: Sample, sampling_params: Mapping[str, Any]
) -> AsyncIterator[Talk]:
    """Begins with `sample.prompt`. Of observations as much is read as of a tool's output
    (--tool-max-output-tokens)."""
    scissors = Toolbox(
        (), args.tokenizer, timeout_seconds=None, max_output_tokens=args.tool_max_output_tokens
    )
    if getattr(args.tokenizer, "chat_template", None):
        async with open_agent(args, sample, sampling_params) as agent:
            yield _Chat(agent, scissors)
        return
    if not isinstance(sample.prompt, str):
        raise GenerateError("the prompt is messages, and this tokenizer has no chat template")
    sample.tokens = list(args.tokenizer.encode(sample.prompt, add_special_tokens=False))
    async with open_session(args, sample, sampling_params) as session:
        yield _Text(session, scissors)


class _Chat:
    def __init__(self, agent: Agent, scissors: Toolbox) -> None:
        self._agent, self._scissors = agent, scissors
        self.samples = agent.samples

    @property
    def done(self) -> bool:
        return self._agent.done

    async def act(self) -> str:
        return (await self._agent.generate()).text

    def observe(self, messages: Sequence[Message]) -> bool:
        return self._agent.say(*(self._short(m) for m in messages))

    def _short(self, message: Message) -> Message:
        content = message["content"]
        return {
            **message,
            "content": self._scissors.cut(content) if isinstance(content, str) else content,
        }


class _Text:
    def __init__(self, session: Session, scissors: Toolbox) -> None:
        self._session, self._scissors = session, scissors
        self.samples = [session.sample]

    @property
    def done(self) -> bool:
        return self._session.done

    async def act(self) -> str:
        return (await self._session.generate()).text

    def observe(self, messages: Sequence[Message]) -> bool:
        return self._session.append_tool(
            "".join(self._scissors.cut(str(m["content"])) for m in messages)
        )
