"""The agent in ten lines."""

from __future__ import annotations

import inspect

from examples import tool_agent
from tests.unit.stages.generate.tools.chatml import ChatML, Model, agent_args
from tests.unit.stages.generate.tools.test_agent import END, PARAMS, prompt, trained


async def test_it_calls_and_answers() -> None:
    tokenizer = ChatML()
    call = '<tool_call>{"name": "multiply", "arguments": {"a": 6, "b": 7}}</tool_call>'
    model = Model(tokenizer, call + END, f"42{END}")
    (made,) = await tool_agent.generate(agent_args(model, tokenizer), prompt(), PARAMS)
    text = tokenizer.decode(made.tokens, skip_special_tokens=False)
    assert '"description": "the first"' in text  # the model is told of its parameters
    assert f"<|im_start|>tool\n42{END}" in text
    assert trained(made, tokenizer) == [call + END, f"42{END}"]


def test_it_is_ten_lines() -> None:
    both = (tool_agent.multiply, tool_agent.generate)
    code = [line for f in both for line in inspect.getsource(f).splitlines() if line.strip()]
    docstring = (tool_agent.multiply.__doc__ or "").strip().splitlines()
    assert len(code) - len([line for line in docstring if line.strip()]) <= 10
