"""Rules about agents: each broken on its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.command_line.loader import load_config
from configs.rules.agents import agents
from configs.rules.rewards import rewards
from configs.schema import Config

COMMAND = ("--agent-command", "python agent.py")


def parse(*words: str) -> Config:
    return load_config(["--mock", *words])


def test_an_agent_alone_is_in_order_and_needs_no_scorer() -> None:
    config = parse(*COMMAND)
    assert list(agents(config)) == [] and list(rewards(config)) == []
    assert not config.answers_are_given
    assert list(agents(parse())) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*COMMAND, "--agent-function-path", "mine.py"), "only one can make the samples"),
        ((*COMMAND, "--custom-generate-function-path", "mine.py"), "only one can make the samples"),
        (("--agent-command", "python 'agent.py"), "No closing quotation"),
        (("--agent-command", " "), "expected a command"),
        (("--agent-reward", "exit_code"), "only a command has an exit code"),
        ((*COMMAND, "--agent-reward", "exit_code", "--group-rm"), "would score over it"),
        ((*COMMAND, "--apply-chat-template"), "it is given the prompt as the data has it"),
        (
            (*COMMAND, "--agent-timeout", "60", "--episode-timeout-seconds", "60"),
            "is not above --agent-timeout 60",
        ),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("async def agent(task, base_url, api_key): ...\n")
    from configs.command_line import loader

    monkeypatch.setattr(loader, "validate", lambda config: None)
    (problem,) = agents(parse(*words))
    assert expected in problem
