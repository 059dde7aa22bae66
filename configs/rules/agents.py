"""Rules about agents: who makes the samples, and who rewards them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from configs.schema import Config


def agents(config: Config) -> Iterator[str]:
    agent, rollout = config.agent, config.rollout
    given = {
        "--agent-command": agent.agent_command,
        "--agent-function-path": agent.agent_function_path,
        "--custom-generate-function-path": rollout.custom_generate_function_path,
        "--environment-path": rollout.environment_path,
        "--rollout-function-path": rollout.rollout_function_path,
    }
    makers = [f"{flag} {value}" for flag, value in given.items() if value is not None]
    if (agent.has_agent or rollout.environment_path) and len(makers) > 1:
        yield f"{' with '.join(makers)}: only one can make the samples. Drop one"
    if agent.agent_command is not None and (problem := _unreadable(agent.agent_command)):
        yield f"--agent-command {agent.agent_command!r}: {problem}"
    if agent.agent_reward == "exit_code" and agent.agent_command is None:
        yield (
            "--agent-reward exit_code without --agent-command: only a command has an exit code. A"
            " function returns its reward"
        )
    if agent.agent_reward == "exit_code" and config.reward.group_rm:
        yield (
            "--agent-reward exit_code with --group-rm: the group's function would score over it."
            " Drop one"
        )
    if agent.has_agent and config.data.apply_chat_template:
        yield (
            "--apply-chat-template with an agent: it is given the prompt as the data has it, and"
            " what it sends is rendered then. Drop it"
        )
    late = rollout.episode_timeout_seconds
    if agent.has_agent and agent.agent_timeout and late and late <= agent.agent_timeout:
        yield (
            f"--episode-timeout-seconds {late:g} is not above --agent-timeout"
            f" {agent.agent_timeout:g}: agents that are late would FAIL, and never be cut off to be"
            " trained"
        )


def _unreadable(command: str) -> str | None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        return f"{error}; expected a command as in a shell"
    return None if words else "expected a command, as in a shell"
