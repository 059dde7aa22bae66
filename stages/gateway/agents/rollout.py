"""One sample by an agent: a session of the gateway from its beginning to its reward."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from typing import Any

from pipeline.core.chat_template import ChatTemplate
from pipeline.core.deadline import Deadline, EpisodeTimeoutError
from pipeline.core.errors import GenerateError
from pipeline.core.types import Sample
from stages.gateway.agents.task import Agent, Outcome, task_of, with_output
from stages.gateway.answer import ParseAnswer
from stages.gateway.samples import samples_of
from stages.gateway.server import Gateway
from stages.gateway.session import Model, Session

NO_REWARD = (
    "the agent ended without a reward: post one to its reward_url, return one, set --agent-reward"
    " exit_code, or have samples scored by --rm-type or --custom-rm-path"
)


class AgentRollouts:
    """A generate function: makes samples as a custom one does.

    A sample is trained when its agent ended well, or was cut off by its deadline or by the room
    that it has (TRUNCATED), and there is a reward: posted, else returned (or by exit code), else
    by the run's scorer. Anything else has FAILED, with the reason; there is no reward of 0 for
    it."""

    takes_list = False

    def __init__(
        self,
        agent: Agent,
        gateway: Gateway,
        *,
        timeout_seconds: float | None,
        max_running: int,
        has_scorer: bool,
        template: ChatTemplate,
        parse: ParseAnswer | None = None,
    ) -> None:
        """`max_running`: agents at once, others wait. `has_scorer`: are samples scored that come
        without a reward? `parse`: the model's format of tool calls."""
        self._agent, self._gateway = agent, gateway
        self._deadline = Deadline(timeout_seconds, "--agent-timeout")
        self._slots = asyncio.Semaphore(max_running)
        self._has_scorer, self._template, self._parse = has_scorer, template, parse

    async def one(
        self, args: Any, sample: Sample, params: Mapping[str, Any], evaluation: bool
    ) -> list[Sample]:
        """`args` as custom generate functions have it. Raises GenerateError, or what the agent
        raised."""
        async with self._slots:
            started = args.time.now()
            session = self._session(args, params)
            outcome, late = await self._run(session, sample, evaluation)
        made = samples_of(
            session,
            sample,
            args.tokenizer,
            cut_off=late is not None,
            skip_special=params.get("skip_special_tokens", True),
        )
        self._check(session, outcome, late, made, evaluation)
        reward = outcome.reward if session.reward is None else session.reward
        seconds = args.time.now() - started - session.engine_seconds
        for one in made:
            one.reward = reward if reward is not None else one.reward
            one.non_generation_time += max(seconds, 0.0)
        return made

    async def close(self) -> None:
        await self._gateway.close()

    def _session(self, args: Any, params: Mapping[str, Any]) -> Session:
        model = Model(
            client=args.engine_client,
            tokenizer=args.tokenizer,
            template=self._template,
            parse=self._parse,
            context_length=args.context_length,
        )
        return Session(model, params, uuid.uuid4().hex, args.time)

    async def _run(
        self, session: Session, sample: Sample, evaluation: bool
    ) -> tuple[Outcome, str | None]:
        """How the agent ended; and, where it did not in time, where it was."""
        access = await self._gateway.open(session)
        task = task_of(sample, access, self._gateway.model, evaluation=evaluation)
        try:
            work = self._agent(task, access, sample.label)
            return await self._deadline.within(work), None
        except EpisodeTimeoutError as error:
            return Outcome(), str(error)
        except Exception:
            if not session.is_truncated:
                raise
            return Outcome(), None  # what else should it do without room
        finally:
            self._gateway.shut(access)

    def _check(
        self,
        session: Session,
        outcome: Outcome,
        late: str | None,
        made: list[Sample],
        evaluation: bool,
    ) -> None:
        """Raises GenerateError for what cannot be trained."""
        rewarded = session.reward is not None or outcome.reward is not None
        problem = late
        if outcome.failure is not None and not rewarded and not session.is_truncated:
            problem = outcome.failure
        elif not made:
            problem = late or with_output("the agent got no answer of the model", outcome.output)
        elif rewarded or self._has_scorer or evaluation:
            return
        raise GenerateError(_with_cause(problem or NO_REWARD, session))


def _with_cause(text: str, session: Session) -> str:
    cause = session.last_error
    return text if cause is None else f"{text}\nthe engines had said to it: {cause}"
