"""The agents of a run, and the gateway that they speak to: one of each in every process that makes
samples."""

from __future__ import annotations

from pathlib import Path

from configs.hooks import load_hook
from configs.schema import Config
from stages.gateway.agents.command import CommandAgent
from stages.gateway.agents.function import FunctionAgent
from stages.gateway.agents.rollout import AgentRollouts
from stages.gateway.agents.task import Agent
from stages.gateway.server import Gateway


def make_agents(config: Config, model: str | Path | None) -> AgentRollouts | None:
    """None where samples are made without agents. `model`: its folder; agents see the name alone.
    Raises ConfigError when the function cannot be loaded."""
    agent = _agent(config)
    if agent is None:
        return None
    processes = max(1, config.cluster.num_rollout_workers)
    return AgentRollouts(
        agent,
        Gateway(model=Path(model or "policy").name, host=config.agent.agent_gateway_host),
        timeout_seconds=config.agent.agent_timeout,
        max_running=max(1, config.agent.agent_concurrency // processes),
        has_scorer=config.has_scorer or config.distill.use_opd,
        template_arguments=config.data.template_arguments,
    )


def _agent(config: Config) -> Agent | None:
    given = config.agent
    if given.agent_command is not None:
        return CommandAgent(given.agent_command, reward_by=given.agent_reward)
    if given.agent_function_path is not None:
        return FunctionAgent(load_hook("agent_function_path", given.agent_function_path))
    return None
