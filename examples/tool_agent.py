"""An agent in ten lines: the model calls Python functions, as its own chat template has it, until
it answers.

    python train_async.py ... --custom-generate-function-path examples/tool_agent.py \
        --max-turns 4 --tool-timeout-seconds 5

The prompts are chats or plain questions, without --apply-chat-template: the agent renders them, for
it is the agent that knows the tools. docs/agents.md says the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slipstream import Sample, open_agent


def multiply(a: int, b: int) -> int:
    """Multiplies two whole numbers.

    Args:
        a: the first
        b: the second
    """
    return a * b


async def generate(args: Any, sample: Sample, sampling_params: Mapping[str, Any]) -> list[Sample]:
    async with open_agent(args, sample, sampling_params, tools=[multiply]) as agent:
        await agent.run()
    return agent.samples
