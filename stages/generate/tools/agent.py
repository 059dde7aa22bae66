"""The usual agent: a chat with tools, in which the model speaks, calls tools and reads what they
say, until it answers.

async def generate(args, sample, sampling_params):
    async with open_agent(args, sample, sampling_params, tools=[search, calculate]) as agent:
        await agent.run()
    return agent.samples
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, NamedTuple, cast

from pipeline.core.agent_counts import AGENT
from pipeline.core.errors import ConfigError, GenerateError
from pipeline.core.protocols import Tokenizer
from pipeline.core.types import Completion, Sample
from stages.generate.image_prompts import has_images
from stages.generate.session import Session, make_session
from stages.generate.tools.calls import Call, CallParser, GarbledCall, ParsedTurn
from stages.generate.tools.formats import PARSERS
from stages.generate.tools.template import AgentTemplate, Message
from stages.generate.tools.tool import Tool
from stages.generate.tools.toolbox import Toolbox
from stages.generate.tools.transcript import Transcript


class Turn(NamedTuple):
    """What the model said: all of it, and the calls in it."""

    text: str
    calls: tuple[Call | GarbledCall, ...]
    completion: Completion


class Agent:
    """One chat with one engine. `samples`: the parts of its trajectory; there are several where the
    chat template shows earlier turns otherwise once there are later ones."""

    def __init__(
        self,
        args: Any,
        sample: Sample,
        sampling_params: Mapping[str, Any],
        toolbox: Toolbox,
        template: AgentTemplate,
        parse: CallParser,
        *,
        keeps_turns: bool = False,
    ) -> None:
        """See `open_agent`. Raises GenerateError for a prompt that leaves no room."""
        self.samples = [sample]
        self.toolbox = toolbox
        self._template, self._parse = template, parse
        self._args, self._params = args, sampling_params
        self._chat = Transcript(template, _messages(args, sample), keeps_turns=keeps_turns)
        sample.tokens = template.encode(self._chat.shown, begins=True)
        self._session = self._open(sample)
        if self._session.done:
            raise GenerateError(
                f"the prompt of {len(sample.tokens)} tokens, tools included, leaves no room for a"
                " turn: see --rollout-max-context-len, and --rollout-max-prompt-len to skip prompts"
            )
        self._num_prompt_tokens = len(sample.tokens)
        # the text of the sample's tokens, in the pieces in which it came, and how many tokens each
        self._pieces = [(self._chat.shown, len(sample.tokens))]
        self._turn: Turn | None = None  # the last, as long as nobody has spoken since
        self._message: Message = {}
        self._stop: str | None = None

    @property
    def done(self) -> bool:
        """Is no further turn possible?"""
        return self._session.done

    @property
    def num_turns(self) -> int:
        return self._session.turns

    async def run(self, **overrides: Any) -> Turn | None:
        """Turns until one has no call, or until no further one is possible: the last of them.
        `overrides` replace sampling parameters."""
        turn = None
        while not self.done:
            turn = await self.generate(**overrides)
            if not turn.calls or not await self.answer(turn.calls):
                break
        return turn

    async def generate(self, **overrides: Any) -> Turn:
        """One turn of the model's. Raises GenerateError when none is possible (look at `done`), or
        when it is not the model's."""
        if self._turn is not None:
            raise GenerateError(
                "the model has just spoken: answer its calls, or say(...) something, before it"
                " speaks again"
            )
        completion = await self._session.generate(**overrides)
        ids, tokenizer = list(completion.token_ids), self._args.tokenizer
        ended = isinstance(completion.matched, int) and ids[-1:] == [completion.matched]
        self._stop = tokenizer.decode(ids[-1:], skip_special_tokens=False) if ended else None
        text = tokenizer.decode(ids[: len(ids) - ended], skip_special_tokens=False)
        opened = "<think>" if self._chat.shown.rstrip().endswith("<think>") else ""
        parsed = self._parse(opened + text, self.toolbox.tools)
        parsed = parsed._replace(content=parsed.content.removeprefix(opened))
        self._message = self._chat.say(text, parsed)
        self._pieces.append((text + (self._stop or ""), len(ids)))
        self._turn = Turn(text, parsed.calls, completion)
        return self._turn

    async def answer(self, calls: Sequence[Call | GarbledCall]) -> bool:
        """Runs the calls, all at once, and appends what they say. False: there is no room, or no
        turn, for that, and the sample is truncated."""
        if self.done:
            self._session.truncated = True
            return False
        return self.say(*self.observations(calls, await self.toolbox.answer(calls)))

    def observations(
        self, calls: Sequence[Call | GarbledCall], texts: Sequence[str]
    ) -> list[Message]:
        """The messages, for `say`, of what was said to the calls of the last turn."""
        return self._template.observations(self._message, calls, texts)

    def say(self, *messages: Message) -> bool:
        """Appends what others say, a tool, an environment or a user, with loss mask 0. False: as
        `answer`."""
        if self._turn is None:
            raise GenerateError("the model has not spoken yet: put messages into sample.prompt")
        self._turn = None
        added = self._chat.follow([self._template.guarded(m) for m in messages], self._stop)
        if added is None:
            return self._fork()
        ids = self._template.encode(added)
        self._pieces.append((added, len(ids)))
        return self._session.append_tool(ids)

    def _fork(self) -> bool:
        """Goes on in a new sample: its tokens are the history as the template has it now. What of
        it was there before keeps its tokens, and none of it is trained again."""
        session, shown = self._session, self._chat.shown
        at = num_kept = 0
        for text, num_tokens in self._pieces:
            if not shown.startswith(text, at):
                break
            at, num_kept = at + len(text), num_kept + num_tokens
        ids = session.sample.tokens[:num_kept] + self._template.encode(shown[at:], begins=not at)
        part = _blank(self.samples[0])
        part.tokens = ids[: self._num_prompt_tokens]
        opened = self._open(part)
        opened.turns, opened.engine_seconds = session.turns, session.engine_seconds
        if not opened.append_tool(ids[self._num_prompt_tokens :]):
            session.truncated = True
            return False
        self._session = opened
        self._pieces = [(shown, len(ids))]
        self.samples.append(part)
        return True

    def finish(self, seconds: float) -> None:
        """Sets texts, status and counts. All parts have those of the whole trajectory, so that a
        reward is of all of it. `seconds`: it has taken."""
        self._session.finish()
        last, first = self.samples[-1], self.samples[0]
        first.non_generation_time += seconds - self._session.engine_seconds
        for place, part in enumerate(self.samples):
            part.response, part.status = last.response, last.status
            part.metadata = {**last.metadata, **first.metadata, AGENT: self._counts(place)}

    def _counts(self, part: int) -> dict[str, Any]:
        return {
            "part": part,
            "turns": self._session.turns,
            "calls": self.toolbox.num_calls,
            "errors": dict(self.toolbox.errors),
            "cut_outputs": self.toolbox.num_cut,
            "forks": len(self.samples) - 1,
        }

    def _open(self, sample: Sample) -> Session:
        return make_session(self._args, sample, self._params)


@asynccontextmanager
async def open_agent(
    args: Any,
    sample: Sample,
    sampling_params: Mapping[str, Any],
    *,
    tools: Sequence[Tool | Callable[..., Any]] = (),
    keeps_turns: bool = False,
) -> AsyncIterator[Agent]:
    """An agent over the run's engines, for a custom generate function with its own `args`, sample
    and parameters. Return its `samples`.

    The prompt is rendered here, with the tools, of a `sample.prompt` that is messages (or one
    user's text). `tools`: records, or plain Python functions, which block nobody. `keeps_turns`:
    where the chat template would show earlier turns otherwise, they stay as they were sampled, and
    the sample does not fork. On a clean exit the samples are as `open_session` leaves them, and
    what was called is counted in their metadata["agent"]."""
    tokenizer = args.tokenizer
    toolbox = Toolbox(
        tools,
        tokenizer,
        timeout_seconds=args.tool_timeout_seconds,
        max_output_tokens=args.tool_max_output_tokens,
    )
    more = getattr(args, "apply_chat_template_kwargs", None) or {}
    template = template_of(tokenizer, [tool.definition for tool in toolbox.tools], more)
    parse = parser_named(args.tool_call_parser, template) if tools else _no_calls
    agent = Agent(args, sample, sampling_params, toolbox, template, parse, keeps_turns=keeps_turns)
    started = args.time.now()
    yield agent
    agent.finish(args.time.now() - started)


def _messages(args: Any, sample: Sample) -> list[Message]:
    if has_images(sample):
        raise GenerateError("an agent's prompt has images: only text is supported")
    if not isinstance(sample.prompt, str):
        return list(sample.prompt)
    if getattr(args, "apply_chat_template", False):
        raise GenerateError(
            "sample.prompt is rendered already, and without the tools: leave out"
            " --apply-chat-template, the agent renders its prompt"
        )
    return [{"role": "user", "content": sample.prompt}]


def template_of(
    tokenizer: Tokenizer, definitions: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
) -> AgentTemplate:
    """The same one for the same tools: it is tried out once, and not in every episode."""
    known = cast(Hashable, tokenizer)  # by identity
    return _template_of(known, json.dumps(list(definitions)), json.dumps(dict(arguments)))


@lru_cache(maxsize=64)
def _template_of(tokenizer: Hashable, definitions: str, arguments: str) -> AgentTemplate:
    return AgentTemplate(
        cast(Tokenizer, tokenizer), json.loads(definitions), **json.loads(arguments)
    )


def parser_named(name: str | CallParser, template: AgentTemplate) -> CallParser:
    """--tool-call-parser: "auto", a name, or what wiring has made of a name of SGLang's."""
    if not isinstance(name, str):
        return name
    found = PARSERS.get(template.format if name == "auto" else name)
    if found is None:
        raise ConfigError(
            f"--tool-call-parser {name}: expected auto, {', '.join(sorted(PARSERS))} or one of"
            " SGLang's"
        )
    return found


def _no_calls(text: str, tools: Sequence[Tool]) -> ParsedTurn:
    return ParsedTurn(text)


def _blank(sample: Sample) -> Sample:
    """A sample of the same rollout, with nothing in it."""
    new = Sample()
    filled = {
        "tokens",
        "response",
        "response_length",
        "loss_mask",
        "weight_versions",
        "status",
        "rollout_log_probs",
        "rollout_routed_experts",
        "teacher_log_probs",
        "spec_info",
        "prefix_cache_info",
        "non_generation_time",
    }
    vars(new).update({k: copy.copy(v) for k, v in vars(sample).items() if k not in filled})
    return new
