"""Agents that make samples over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Agents."""

    # makes every sample with a process of your own, which asks the model through the gateway: its
    # address and token are in OPENAI_BASE_URL and OPENAI_API_KEY (ANTHROPIC_...), its prompt in
    # SLIPSTREAM_TASK
    agent_command: str | None = None
    # makes every sample with your own function, file.py[:name]: [async] f(task, base_url, api_key)
    # -> reward or None
    agent_function_path: str | None = None
    # cuts an agent off after so many seconds; what it has made until then is TRUNCATED, or has
    # FAILED where nothing rewards it
    agent_timeout: float | None = 1800.0
    # posted: an agent posts its reward, or its samples are scored; exit_code: of a command, 0
    # stands for 1.0 and 1 for 0.0, any other has failed
    agent_reward: Literal["posted", "exit_code"] = "posted"
    agent_concurrency: int = 64  # limits how many agents run at once, shared by rollout workers
    # where the gateway listens; other machines reach it at an address that they reach this one by
    agent_gateway_host: str = "127.0.0.1"

    @property
    def has_agent(self) -> bool:
        return self.agent_command is not None or self.agent_function_path is not None
