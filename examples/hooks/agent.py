"""--agent-function-path examples/hooks/agent.py: an agent that speaks to the model over HTTP, as to
any other model; what is sampled for it is trained."""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI

DOUBT = {"role": "user", "content": "Are you sure? Answer again."}


async def agent(task: dict[str, Any], base_url: str, api_key: str) -> float:
    """Asks, doubts what it is told, and rewards what it is told then."""
    client = AsyncOpenAI(base_url=base_url, api_key=api_key)

    async def said_to(messages: list[Any]) -> str:
        answer = await client.chat.completions.create(model=task["model"], messages=messages)
        return answer.choices[0].message.content or ""

    async with client:
        question = {"role": "user", "content": str(task["prompt"])}
        first = await said_to([question])
        second = await said_to([question, {"role": "assistant", "content": first}, DOUBT])
    return float(str(task["label"]) in second)
