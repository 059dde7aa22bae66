"""Multi-turn generation for custom functions, token-exact: what the model sampled is never decoded
and encoded again.

async def generate(args, sample, sampling_params):
    async with open_session(args, sample, sampling_params) as session:
        while not session.done:
            turn = await session.generate(stop=["</calc>"])
            call = find_call(turn.text)
            if call is None:
                break
            session.append_tool(run(call))
    return sample
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pipeline.core.errors import GenerateError
from pipeline.core.protocols import EngineClient, Tokenizer
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import Completion, Sample, Status
from stages.generate.image_prompts import Vision, engine_request


class Session:
    """One conversation with one engine, written into one sample as it goes.

    The response budget, `sampling_params["max_new_tokens"]`, covers all turns and tool tokens
    together."""

    def __init__(
        self,
        sample: Sample,
        client: EngineClient,
        tokenizer: Tokenizer,
        sampling_params: Mapping[str, Any],
        *,
        max_turns: int,
        context_length: int | None = None,
        time: TimeSource | None = None,
        vision: Vision | None = None,
    ) -> None:
        self.sample = sample
        self.turns = 0
        self.truncated = False  # no room (or no turn) left for what would have come next
        self.engine_seconds = 0.0
        self._client = client
        self._tokenizer = tokenizer
        self._params = dict(sampling_params)
        self._max_turns = max_turns
        self._context_length = context_length
        self._last_cut = False  # the last turn ended at its length limit
        self._time = time or MonotonicTime()
        self._vision = vision
        if sample.session_id is None:
            # keeps all turns on the engine that holds their KV
            sample.session_id = uuid.uuid4().hex

    @property
    def remaining(self) -> int:
        """How many tokens may still be appended, generated or not."""
        budget = self._params["max_new_tokens"] - self.sample.response_length
        if self._context_length is not None:
            budget = min(budget, self._context_length - len(self.sample.tokens))
        return max(budget, 0)

    @property
    def done(self) -> bool:
        """Is no further turn possible?"""
        return self.truncated or self.remaining < 1 or self.turns >= self._max_turns

    async def generate(self, **overrides: Any) -> Completion:
        """One turn: samples on from everything so far, and appends the answer as trained tokens.

        `overrides` replace sampling parameters for this turn (stop, temperature, max_new_tokens
        ...). Raises GenerateError when the session is done: look at `done` first."""
        if self.done:
            raise GenerateError(
                f"no further turn: {self.turns} of {self._max_turns} turns, {self.remaining} tokens"
                " left"
            )
        params = {**self._params, **overrides}
        params["max_new_tokens"] = min(params["max_new_tokens"], self.remaining)
        started = self._time.now()
        have = self.sample.rollout_routed_experts
        known: dict[str, Any] = {} if have is None else {"known_experts": len(have)}
        ids, images = engine_request(self.sample, self._vision)
        turn = await self._client.generate(
            ids, params, session_id=self.sample.session_id, **known, **images
        )
        if self._vision is not None:
            self._vision.check_answer(turn.token_ids)
        self.engine_seconds += self._time.now() - started
        self.turns += 1
        self.sample.append_response_tokens(
            turn.token_ids, log_probs=turn.log_probs, spans=turn.spans
        )
        if turn.routed_experts is not None:
            self.sample.add_routed_experts(turn.routed_experts, turn.experts_start)
        self._last_cut = turn.finish_reason == "length"
        if self._last_cut and (
            self.remaining < 1 or len(turn.token_ids) < params["max_new_tokens"]
        ):
            self.truncated = True  # by the budget, or by a limit of the engine's own
        return turn

    def append_tool(self, result: str | Sequence[int]) -> bool:
        """Appends what a tool said, with mask 0 and no version. Text is encoded on its own; ids are
        appended as they are.

        It is appended whole or not at all: when it does not fit, or when the turns are used up and
        nobody would read it, the session is truncated and False is returned."""
        ids = (
            self._tokenizer.encode(result, add_special_tokens=False)
            if isinstance(result, str)
            else list(result)
        )
        if len(ids) >= self.remaining or self.turns >= self._max_turns:
            self.truncated = True
            return False
        self.sample.append_response_tokens(ids, trainable=False)
        self._last_cut = False
        return True

    def finish(self) -> None:
        """Sets text and status, unless the function has set a status itself."""
        tokens = self.sample.tokens[self.sample.prompt_length :]
        self.sample.response = self._tokenizer.decode(
            tokens, skip_special_tokens=self._params.get("skip_special_tokens", True)
        )
        if self.sample.status is Status.PENDING:
            self.sample.status = (
                Status.TRUNCATED if self.truncated or self._last_cut else Status.COMPLETED
            )


@asynccontextmanager
async def open_session(
    args: Any, sample: Sample, sampling_params: Mapping[str, Any]
) -> AsyncIterator[Session]:
    """A session over the run's engines, for a custom generate function with its own `args`, sample
    and parameters.

    On a clean exit the sample has its response text, its status (COMPLETED or TRUNCATED unless set)
    and in `non_generation_time` the seconds that were not spent waiting for the engine. An
    exception leaves it unfinished."""
    if not sample.tokens:
        raise GenerateError(
            "the sample has no prompt tokens: sessions start from sample.tokens, which the generate"
            " stage fills"
        )
    session = make_session(args, sample, sampling_params)
    started = args.time.now()
    yield session
    sample.non_generation_time += args.time.now() - started - session.engine_seconds
    session.finish()


def make_session(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> Session:
    return Session(
        sample,
        args.engine_client,
        args.tokenizer,
        sampling_params,
        max_turns=args.max_turns,
        context_length=args.context_length,
        time=args.time,
        vision=getattr(args, "vision", None),
    )
