"""One rollout as the gateway sees it: an agent's requests, answered by the engines and kept as a
tree of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from pipeline.core.chat_template import ChatTemplate
from pipeline.core.errors import (
    ConfigError,
    DataError,
    EngineError,
    GenerateError,
    RefusedRequestError,
)
from pipeline.core.protocols import EngineClient, Tokenizer
from pipeline.core.time import TimeSource
from pipeline.core.types import Completion
from stages.gateway.answer import Choice, ParseAnswer, chat_answer, read_choice
from stages.gateway.chat import ChatRequest
from stages.gateway.errors import NoRoomError, RequestError, UnavailableError
from stages.gateway.history import History
from stages.gateway.messages import read_messages
from stages.gateway.past import Past
from stages.gateway.tree import Node, TokenTree, num_known_experts, tokens_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What sessions speak with, and how its texts become tokens and back."""

    client: EngineClient
    tokenizer: Tokenizer
    template: ChatTemplate
    parse: ParseAnswer | None = None
    context_length: int | None = None  # tokens of prompt and response


class Exchange(NamedTuple):
    """A request's answer, and where the tree keeps it."""

    answer: dict[str, Any]  # OpenAI's `chat.completion`
    nodes: list[Node]

    def withdraw(self) -> None:
        """It never reached the agent: nothing of it is trained."""
        for node in self.nodes:
            node.withdrawn = True


class Session:
    """`params`: the run's sampling parameters, SGLang's; `max_new_tokens` of them covers all that
    comes behind the first sampled token of a branch, as in sessions of custom functions."""

    def __init__(
        self, model: Model, params: Mapping[str, Any], session_id: str, time: TimeSource
    ) -> None:
        self.id = session_id  # keeps all requests on the engine that holds their KV
        self.tree = TokenTree()
        self.is_truncated = False  # a request had no room
        self.reward: Any = None  # posted
        self.last_error: str | None = None  # of the engines
        self.num_requests = 0
        self.num_calls = 0  # of tools, that the model made
        self.past = Past()
        self.engine_seconds = 0.0  # in which at least one request was with the engines
        self._model, self._params, self._time = model, dict(params), time
        self._history = History()
        self._in_flight: set[asyncio.Task[Any]] = set()
        self._busy_since = 0.0
        self._num_draws = 0
        self.is_closed = False

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    async def chat(self, request: ChatRequest) -> Exchange:
        """Raises RequestError."""
        if self.is_closed:
            raise RequestError("this rollout is over", code="rollout_over")
        self.num_requests += 1
        try:
            place = self._place(request)
        except (DataError, GenerateError) as error:
            raise RequestError(str(error), param="messages") from error
        ids = tokens_of(place)
        params = self._params_of(request, place, len(ids))
        with self._working():
            completions = await self._completions(ids, params, request, place)
        tokenizer = self._model.tokenizer
        opened = tokenizer.decode(ids[-8:], skip_special_tokens=False)
        parse = self._model.parse
        try:
            choices = [read_choice(c, request, tokenizer, parse, opened) for c in completions]
        except ConfigError as error:  # the model is told of tools in a way that nobody reads
            raise RequestError(str(error), param="tools") from error
        self.num_calls += sum(len(c.message.get("tool_calls", ())) for c in choices)
        nodes = [self._keep(choice, request, place) for choice in choices]
        answer = chat_answer(choices, request, len(ids), tokenizer)
        return Exchange(answer, [node for node in nodes if node is not None])

    def count(self, request: ChatRequest) -> int:
        """Tokens of the prompt as a new chat has them. Raises RequestError."""
        try:
            return len(self._model.template.prompt(request.messages, request.tools))
        except DataError as error:
            raise RequestError(str(error), param="messages") from error

    def close(self) -> None:
        """Requests under way are dropped, and none is taken any more."""
        self.is_closed = True
        for task in self._in_flight:
            task.cancel()

    # -- tokens ------------------------------------------------------------------------------------

    def _place(self, request: ChatRequest) -> Node:
        if request.prompt is not None:
            return self._place_of_prompt(request.prompt)
        template, messages, tools = self._model.template, request.messages, request.tools
        known = self._history.find(messages, tools)
        if known is not None and known.num_messages < len(messages):
            try:
                more = template.since(
                    messages, known.num_messages - 1, tools, stopped_at=_stop_token(known.place)
                )
            except DataError:  # the template does not show where that turn ends
                known = None
            else:
                return self.tree.place(more, behind=known.place)
        return self.tree.place(self._prompt(template.prompt(messages, tools)))

    def _place_of_prompt(self, prompt: str | list[int]) -> Node:
        if not isinstance(prompt, str):
            size = len(self._model.tokenizer)
            if max(prompt) >= size:
                raise RequestError(
                    f"prompt has the token {max(prompt)}; expected ids below {size}", param="prompt"
                )
            return self.tree.place(self._prompt(prompt))
        known = self._history.find_text(prompt)
        rest = prompt if known is None else prompt[len(known.text) :]
        ids = list(self._model.tokenizer.encode(rest, add_special_tokens=False))
        if known is not None:
            return self.tree.place(ids, behind=known.place)
        return self.tree.place(self._prompt(ids))

    def _prompt(self, ids: list[int]) -> list[int]:
        if not ids:
            raise RequestError("the prompt has no tokens", param="messages")
        return ids

    def _params_of(self, request: ChatRequest, place: Node, num_tokens: int) -> dict[str, Any]:
        room = self._params["max_new_tokens"] - _num_since_prompt(place)
        if self._model.context_length is not None:
            room = min(room, self._model.context_length - num_tokens)
        if room < 1:
            self.is_truncated = True
            raise NoRoomError(
                f"the chat has {num_tokens} tokens, which leaves no room for an answer: responses"
                f" have at most {self._params['max_new_tokens']} tokens, all turns together"
                + (
                    f", and a context {self._model.context_length}"
                    if self._model.context_length is not None
                    else ""
                )
            )
        asked = request.max_tokens if request.max_tokens is not None else room
        params = {**self._params, **request.params, "max_new_tokens": min(asked, room)}
        if stops := self._params.get("stop"):
            params["stop"] = [*stops, *request.params.get("stop", ())]
        return params

    def _keep(self, choice: Choice, request: ChatRequest, place: Node) -> Node | None:
        if not choice.completion.token_ids:
            return None
        node = self.tree.answer(place, choice.completion)
        if isinstance(request.prompt, str):
            self._history.remember_text(request.prompt + choice.message["content"], node)
        elif request.prompt is None:
            (said,) = read_messages([choice.message])
            self._history.remember(request.messages, request.tools, said, node)
        return node

    # -- engines -----------------------------------------------------------------------------------

    async def _completions(
        self, ids: list[int], params: dict[str, Any], request: ChatRequest, place: Node
    ) -> list[Completion]:
        known = num_known_experts(place)
        more: dict[str, Any] = {"known_experts": known} if known else {}

        async def one() -> Completion:
            own = dict(params)
            if "sampling_seed" in own:  # two requests of the same tokens are two draws
                own["sampling_seed"] += self._num_draws
            self._num_draws += 1
            return await self._model.client.generate(ids, own, session_id=self.id, **more)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one()) for _ in range(request.num_choices)]
        except ExceptionGroup as errors:
            self._refuse(errors.exceptions[0])
        return [task.result() for task in tasks]

    def _refuse(self, error: Exception) -> NoReturn:
        if isinstance(error, RefusedRequestError):
            raise RequestError(str(error)) from None
        if isinstance(error, EngineError):
            self.last_error = str(error)
            raise UnavailableError(self.last_error) from None
        raise error

    @contextmanager
    def _working(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        if not self._in_flight:
            self._busy_since = self._time.now()
        self._in_flight.add(task)
        try:
            yield
        finally:
            self._in_flight.discard(task)
            if not self._in_flight:
                self.engine_seconds += self._time.now() - self._busy_since


def _stop_token(place: Node) -> int | None:
    return place.matched if isinstance(place.matched, int) else None


def _num_since_prompt(place: Node) -> int:
    """Tokens behind the first sampled one of the way, it included."""
    way = place.way
    first = next((i for i, node in enumerate(way) if node.is_sampled), len(way))
    return sum(len(node.tokens) for node in way[first:])
