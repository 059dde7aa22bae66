"""What an agent is told, and what it says at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core.types import Sample
from stages.gateway.server import Access

OUTPUT_SHOWN = 600  # characters of an agent's output in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an agent ended."""

    reward: Any = None  # what it returned, or its exit code stands for
    failure: str | None = None  # it could not do what it should
    output: str = ""  # the end of what it printed


class Agent(Protocol):
    """Raises what an agent raises. Cancelled, it ends all that it has started."""

    async def __call__(self, task: dict[str, Any], access: Access, label: Any) -> Outcome:
        """`label`: for an agent from which nothing that the model does can read it."""


def task_of(sample: Sample, access: Access, model: str, *, evaluation: bool) -> dict[str, Any]:
    """Without the label: a command's environment can be read by what the model does. What the
    agent itself needs to score belongs in the metadata."""
    return {
        "rollout": access.rollout,
        "prompt": sample.prompt,
        "metadata": sample.metadata,
        "group_index": sample.group_index,
        "index": sample.index,
        "evaluation": evaluation,
        "model": model,
        "reward_url": access.reward_url,
    }


def with_output(text: str, output: str) -> str:
    """`text` and the end of what the agent printed."""
    shown = output.strip()[-OUTPUT_SHOWN:]
    return f"{text}; the end of its output:\n{shown}" if shown else f"{text}; it printed nothing"
