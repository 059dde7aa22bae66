"""The openai-agents SDK, unmodified: by responses, as it does unasked, and by chat completions."""

import agents
import openai
import pytest
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)

from tests.unit.stages.gateway.clients.calculator import ADD, QUESTION, SAID, calculator, trained

ALONE = RunConfig(tracing_disabled=True)


@function_tool
def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@pytest.mark.parametrize("model", [OpenAIResponsesModel, OpenAIChatCompletionsModel])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_agent_calls_its_tool_and_goes_on(model: type, is_streamed: bool) -> None:
    async with (
        calculator(ADD, SAID, "Yes.") as world,
        openai.AsyncOpenAI(base_url=world.access.base_url, api_key=world.access.token) as client,
    ):
        agent = Agent(
            name="calculator",
            instructions="Be brief.",
            tools=[add],
            model=model(model="policy", openai_client=client),
        )
        if is_streamed:
            first = Runner.run_streamed(agent, QUESTION, run_config=ALONE)
            kinds = [event.type async for event in first.stream_events()]
            assert "raw_response_event" in kinds and "run_item_stream_event" in kinds
        else:
            first = await Runner.run(agent, QUESTION, run_config=ALONE)
        assert first.final_output == SAID
        history = [*first.to_input_list(), {"role": "user", "content": "Sure?"}]
        second = await Runner.run(agent, history, run_config=ALONE)
        assert second.final_output == "Yes."
        assert trained(world) == [f"{ADD}{SAID}Yes."]


async def test_an_agent_goes_on_from_the_last_response() -> None:
    async with (
        calculator("Hello.", "Bye.") as world,
        openai.AsyncOpenAI(base_url=world.access.base_url, api_key=world.access.token) as client,
    ):
        agent = Agent(
            name="talker", model=OpenAIResponsesModel(model="policy", openai_client=client)
        )
        first = await Runner.run(agent, "Hi", run_config=ALONE)
        second = await Runner.run(
            agent, "Go", previous_response_id=first.last_response_id, run_config=ALONE
        )
        assert second.final_output == "Bye."
        assert trained(world) == ["Hello.Bye."]


def test_it_is_the_sdk() -> None:
    assert agents.Runner is Runner
