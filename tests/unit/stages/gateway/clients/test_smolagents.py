"""smolagents, unmodified: an agent that calls tools, and one that writes code."""

import asyncio
import json

from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool

from tests.unit.stages.gateway.clients.calculator import ADD, QUESTION, calculator, trained
from tests.unit.stages.gateway.gateway_world import World

FINAL = {"name": "final_answer", "arguments": {"answer": "5"}}
CALL_FINAL = f"<tool_call>{json.dumps(FINAL)}</tool_call>"
CODE = "I add.\n<code>\nfinal_answer(add(a=2, b=3))\n</code>"


@tool  # type: ignore[untyped-decorator, unused-ignore]
def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def model_of(world: World) -> OpenAIServerModel:
    return OpenAIServerModel(
        model_id="policy", api_base=world.access.base_url, api_key=world.access.token
    )


async def test_an_agent_calls_its_tool() -> None:
    async with calculator(ADD, CALL_FINAL) as world:
        agent = ToolCallingAgent(tools=[add], model=model_of(world), verbosity_level=0)
        assert await asyncio.to_thread(agent.run, QUESTION) == "5"
        asked = len(world.client.asked)
        assert asked == 2
        assert "".join(trained(world)) == ADD + CALL_FINAL


async def test_an_agent_writes_code() -> None:
    async with calculator(CODE) as world:
        agent = CodeAgent(tools=[add], model=model_of(world), verbosity_level=0)
        assert await asyncio.to_thread(agent.run, QUESTION) == 5
        assert trained(world) == [CODE]
