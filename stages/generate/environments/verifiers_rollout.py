"""Rollouts of environments of the package verifiers: its own loop, with a client in the place of an
OpenAI server that appends to one token-exact chat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from pipeline.core.errors import GenerateError, UserFunctionError
from pipeline.core.threads import in_thread
from pipeline.core.types import Sample
from pipeline.core.user_errors import in_words
from pipeline.core.verifiers_env import KEY, load_environment
from stages.generate.environments.verifiers_client import Chat, client_of
from stages.generate.environments.verifiers_world import failed_scorers, in_world


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> list[Sample]:
    """A custom generate function for rows of `verifiers:NAME`. The rubric's reward is the sample's;
    its metrics are in metadata["verifiers"]["metrics"]."""
    given = sample.metadata[KEY]
    environment = await in_thread(lambda: load_environment(given["spec"]))
    async with AsyncExitStack() as stack:
        chat = Chat(args, sample, sampling_params, stack)
        loop = asyncio.get_running_loop()
        state = await in_world(_rollout(environment, dict(given["row"]), chat, loop, given["spec"]))
    if chat.agent is None:
        raise GenerateError(f"{given['spec']}: its rollout ended ahead of the first turn")
    for part in chat.agent.samples:
        part.reward = float(state["reward"])
        part.metadata[KEY] = {**given, "metrics": dict(state.get("metrics") or {})}
    return chat.agent.samples


async def _rollout(
    environment: Any, row: dict[str, Any], chat: Chat, loop: asyncio.AbstractEventLoop, spec: str
) -> Any:
    """Its final state, scored. Raises UserFunctionError for what it or its rubric raised."""
    client = client_of(chat, loop)
    state = await environment.rollout(row, client, "policy", {})
    if chat.error is not None:
        raise chat.error  # what verifiers wraps, or takes for the end of the rollout
    if state.get("error") is not None:
        raise UserFunctionError(f"{spec}: {in_words(_cause(state['error']))}")
    if state.get("timed_out"):
        raise UserFunctionError(f"{spec}: its own timeout_seconds are over")
    with failed_scorers() as failed:
        try:
            await environment.rubric.score_rollout(state)
        finally:
            if hasattr(environment.rubric, "cleanup"):
                await environment.rubric.cleanup(state)
    if failed:  # for which verifiers would give 0
        raise UserFunctionError(f"{spec}: {'; '.join(failed)}")
    return state


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error.__cause__, Exception) else error
