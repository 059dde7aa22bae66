"""The agents of a run, and the gateway that they speak to: one of each in every process that makes
samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.hooks import load_hook
from configs.schema import Config
from pipeline.core.chat_template import ChatTemplate
from pipeline.core.protocols import Tokenizer
from pipeline.wiring.tool_calls import call_parser
from stages.gateway.agents.command import CommandAgent
from stages.gateway.agents.function import FunctionAgent
from stages.gateway.agents.rollout import AgentRollouts
from stages.gateway.agents.task import Agent
from stages.gateway.answer import ParseAnswer, ParsedAnswer, ToolCall
from stages.gateway.server import Gateway
from stages.generate.tools.agent import parser_named, template_of
from stages.generate.tools.calls import Call
from stages.generate.tools.tool import Tool


def make_agents(
    config: Config, tokenizer: Tokenizer, model: str | Path | None
) -> AgentRollouts | None:
    """None where samples are made without agents. `model`: its folder; agents see the name alone.
    Raises ConfigError when the function cannot be loaded, or the parser of tool calls is not
    known."""
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
        template=ChatTemplate(
            lambda tools: template_of(tokenizer, tools, config.data.template_arguments),
            lambda token: tokenizer.decode([token], skip_special_tokens=False),
        ),
        parse=make_parser(config, tokenizer),
    )


def _agent(config: Config) -> Agent | None:
    given = config.agent
    if given.agent_command is not None:
        return CommandAgent(given.agent_command, reward_by=given.agent_reward)
    if given.agent_function_path is not None:
        return FunctionAgent(load_hook("agent_function_path", given.agent_function_path))
    return None


def make_parser(config: Config, tokenizer: Tokenizer) -> ParseAnswer:
    """--tool-call-parser over an answer, as agents are given it."""
    name = call_parser(config.rollout.tool_call_parser)
    arguments = config.data.template_arguments

    def parse(text: str, tools: Sequence[Mapping[str, Any]]) -> ParsedAnswer:
        read = parser_named(name, template_of(tokenizer, tools, arguments))
        turn = read(text, [_tool(tool["function"]) for tool in tools])
        calls = [
            ToolCall(call.name, json.dumps(call.arguments, ensure_ascii=False))
            for call in turn.calls
            if isinstance(call, Call)
        ]
        # where none of the calls can be read, the agent sees what was said instead
        return ParsedAnswer(turn.content, calls) if calls else ParsedAnswer(text)

    return parse


def _tool(function: Mapping[str, Any]) -> Tool:
    """For a parser, which calls none."""
    return Tool(
        name=function["name"],
        description=function["description"],
        parameters=function["parameters"],
        call=_not_here,
    )


async def _not_here(arguments: dict[str, Any]) -> str:
    raise NotImplementedError("the agent calls its tools itself")
