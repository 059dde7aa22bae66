"""`--rm-type remote_rm`: a server scores, as slime asks one."""

from __future__ import annotations

import asyncio
from typing import Any

from pipeline.core.errors import RewardError
from pipeline.core.types import Sample
from stages.reward.asking import Asker, Sleep

CONNECTIONS = 64  # at once: a reward server is one program, not a pool


class RemoteReward:
    """POSTs {"prompt", "response", "label"} to --rm-url; the JSON of the answer is the reward: a
    number, or an object with a `score`. An attempt has --reward-timeout-seconds."""

    def __init__(
        self, url: str | None, timeout_seconds: float, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._asker = (
            Asker("--rm-url", url, timeout_seconds, connections=CONNECTIONS, sleep=sleep)
            if url is not None
            else None
        )

    async def __call__(self, sample: Sample) -> Any:
        """The reward of the sample. Raises RewardError."""
        if self._asker is None:
            raise RewardError("rm_type remote_rm needs --rm-url, the server that scores")
        body = {"prompt": sample.prompt, "response": sample.response, "label": sample.label}
        return await self._asker.ask(body)

    async def close(self) -> None:
        if self._asker is not None:
            await self._asker.close()
