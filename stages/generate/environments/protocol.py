"""A text environment: it shows the model something, takes what the model says, and rewards it.

class Environment:
    def __init__(self, args): ...
    async def reset(self, sample): return "I think of a number from 1 to 100. Which one?"
    async def step(self, action): return "Higher.", None, False

--environment-path file.py[:Class]. One is made for every sample. Methods may be plain: then they
run in a thread, and may block it. Whatever one raises fails its sample, with the cause."""

from __future__ import annotations

from typing import Any, Protocol

from pipeline.core.types import Sample

# text: a user's message (without a chat template: what follows as it is); or messages
Observation = str | list[dict[str, Any]]


class Environment(Protocol):
    """What one episode is played with. It may have `close()` as well: called when the episode is
    over, however it ended."""

    def __init__(self, args: Any) -> None:
        """`args`: every flag, as custom functions have them."""

    async def reset(self, sample: Sample) -> Observation | None:
        """Before the first turn. What the model reads takes the place of `sample.prompt`; None:
        that is what it reads. `sample.label` and `sample.metadata` are those of the data."""

    async def step(self, action: str) -> tuple[Observation, float | None, bool]:
        """After every turn of the model's: (observation, reward, done).

        `action`: all that the model said in this turn. The sample's reward is the sum over its
        turns; where every one was None, the sample is scored as any other (--rm-type). When it is
        done, nobody reads the observation. An episode that is not done when turns or tokens are
        used up is TRUNCATED, with the rewards that it has."""
