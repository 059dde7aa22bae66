"""Episodes of a user's environment, through the generate stage, over a scripted engine."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config, RolloutConfig, flat_args
from pipeline.core.errors import ConfigError
from pipeline.core.types import Sample, Status
from stages.generate.generate import GenerateStage
from tests.conftest import ROOT
from tests.unit.fake_engine import FakeEngineClient, completion
from tests.unit.stages.generate.tools.chatml import ChatML, Model

END = "<|im_end|>"
GUESS = str(ROOT / "examples" / "guess_the_number" / "game.py")
OTHERS = """
import os, threading, time

class Environment:
    def __init__(self, args):
        self.closed = []
        args.made.append(self)
    def reset(self, sample):
        return None
    def step(self, action):
        self.thread = threading.current_thread()
        return {step}
    def close(self):
        self.closed.append(True)

class Echo:
    def __init__(self, args): pass
    async def reset(self, sample): return "Say it."
    async def step(self, action): return action, None, False

class NoEnvironment: pass
"""


class Bytes(ChatML):
    chat_template = ""  # of a base model


def stage(spec: str, client: FakeEngineClient, tokenizer: Any, **more: Any) -> GenerateStage:
    rollout = RolloutConfig(
        environment_path=spec, rollout_max_response_len=2000, rollout_skip_special_tokens=False
    )
    args = flat_args(Config(rollout=rollout))
    vars(args).update(more)
    return GenerateStage(client, tokenizer, rollout, args)


def row(**more: Any) -> Sample:
    return Sample(
        **{"prompt": "Which number? ", "index": 0, "group_index": 0, "label": "40", **more}
    )


def text_of(sample: Sample, tokenizer: ChatML, mask: int) -> str:
    ids = sample.tokens[sample.prompt_length :]
    kept = [t for t, m in zip(ids, sample.loss_mask or [], strict=True) if m == mask]
    return tokenizer.decode(kept, skip_special_tokens=False)


async def test_observations_are_the_templates_deltas_and_rewards_add_up() -> None:
    tokenizer = ChatML()
    model = Model(tokenizer, f"50{END}", f"well{END}", f"it is 40{END}")
    (made,) = await stage(GUESS, model, tokenizer, max_turns=13)([row()])
    prompt = tokenizer.decode(made.tokens[: made.prompt_length], skip_special_tokens=False)
    assert prompt.startswith("<|im_start|>user\nWhich number? <")
    assert text_of(made, tokenizer, 1) == f"50{END}well{END}it is 40{END}"
    asked = f"\n<|im_start|>user\n{{}}{END}\n<|im_start|>assistant\n"
    assert text_of(made, tokenizer, 0) == "".join(
        asked.format(t) for t in ("lower: ", "a number: ")
    )
    assert made.status is Status.COMPLETED, made.error
    assert made.reward == pytest.approx(1 - 2 / 13)
    assert model.asked[2][0] == made.tokens[: -len(tokenizer.encode(f"it is 40{END}"))]


async def test_an_episode_that_is_not_done_when_turns_are_used_up_keeps_its_rewards() -> None:
    tokenizer = ChatML()
    model = Model(tokenizer, f"50{END}", f"30{END}")
    (made,) = await stage(GUESS, model, tokenizer, max_turns=2)([row()])
    assert (made.status, made.reward) == (Status.TRUNCATED, 0.0)
    assert text_of(made, tokenizer, 1) == f"50{END}30{END}"


async def test_without_a_chat_template_it_is_one_text() -> None:
    tokenizer = Bytes()
    client = FakeEngineClient(completion("50"), completion("40"))
    (made,) = await stage(GUESS, client, tokenizer)([row()])
    assert text_of(made, tokenizer, 0) == "lower: "
    assert made.response == "50lower: 40"
    assert made.status is Status.COMPLETED


def others(folder: Path, step: str = "('', 1.0, True)") -> str:
    file = folder / "others.py"
    file.write_text(OTHERS.replace("{step}", step))
    return str(file)


async def test_one_that_blocks_does_so_in_a_thread_and_is_closed(tmp_path: Path) -> None:
    made: list[Any] = []
    tokenizer = ChatML()
    spec = others(tmp_path) + ":Environment"
    (sample,) = await stage(spec, Model(tokenizer, f"a{END}"), tokenizer, made=made)([row()])
    assert sample.reward == 1.0, sample.error
    assert made[0].thread is not threading.main_thread()
    assert made[0].closed == [True]


async def test_a_row_names_another_class_of_the_file_and_no_other_code(tmp_path: Path) -> None:
    tokenizer = ChatML()
    spec = others(tmp_path) + ":Environment"
    model = Model(tokenizer, f"a{END}", f"b{END}")
    playing = stage(spec, model, tokenizer, made=[], max_turns=2)
    (made,) = await playing([row(metadata={"environment": "Echo"})])
    assert "a" in text_of(made, tokenizer, 0)
    assert made.reward is None  # nobody gave one: it is scored
    for name in ("NoEnvironment", "os", "Missing", "os:system", "_Hidden", 3):
        (failed,) = await playing([row(metadata={"environment": name})])
        assert failed.status is Status.FAILED
        assert "expected the name of a class" in (failed.error or "")


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("1 / 0", r"ZeroDivisionError: division by zero \(--environment-path, .*others.py line 12"),
        ("os.sys.exit(3)", "SystemExit: 3"),
        ("('x', 0.5)", "expected .observation, reward, done."),
        ("('x', float('nan'), False)", "the reward nan; expected a finite number"),
        ("(7, 0.5, False)", "the observation 7; expected text"),
        ("threading.Event().wait(60)", "not done after 0.05 s .--environment-timeout-seconds."),
    ],
)
async def test_what_goes_wrong_fails_the_sample_with_its_cause(
    tmp_path: Path, step: str, error: str
) -> None:
    tokenizer = ChatML()
    model = Model(tokenizer, f"a{END}")
    spec = others(tmp_path, step) + ":Environment"
    late = {"environment_timeout_seconds": 0.05} if "wait" in step else {}
    (made,) = await stage(spec, model, tokenizer, made=[], **late)([row()])
    assert made.status is Status.FAILED
    assert made.reward is None
    assert re.search(error, made.error or ""), made.error


async def test_of_a_huge_observation_as_much_is_read_as_of_a_tools_output(tmp_path: Path) -> None:
    tokenizer = ChatML()
    spec = others(tmp_path, "('x' * 100_000_000, None, False)") + ":Environment"
    model = Model(tokenizer, f"a{END}", f"b{END}")
    (made,) = await asyncio.wait_for(
        stage(spec, model, tokenizer, made=[], max_turns=2, tool_max_output_tokens=50)([row()]), 30
    )
    assert f"{'x' * 50}\n[cut: 50 of 100000000 characters" in text_of(made, tokenizer, 0)


def test_a_file_without_the_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Nothing"):
        stage(others(tmp_path) + ":Nothing", Model(ChatML()), ChatML())
