"""Environments of verifiers are rolled out token for token, over a scripted engine."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config, DataConfig, RolloutConfig, flat_args
from pipeline.core.errors import DataError
from pipeline.core.types import Sample, Status
from stages.generate.generate import GenerateStage
from stages.source import build_source
from tests.unit.stages.generate.environments.test_episode import text_of
from tests.unit.stages.generate.tools.chatml import ChatML, Model

pytest.importorskip("verifiers.clients", reason="needs verifiers 0.1.14 to 0.3")
END = "<|im_end|>"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("toy_verifiers", None)
    importlib.invalidate_caches()


async def roll(kind: str, *turns: str, **more: Any) -> tuple[Sample, ChatML]:
    tokenizer = ChatML()
    data = DataConfig(rollout_shuffle=False)
    spec = f"verifiers:toy-verifiers?kind={kind}"
    ((sample,),) = build_source(spec, data, tokenizer=tokenizer).get_samples(1)
    sample.index = sample.group_index = 0
    rollout = RolloutConfig(rollout_max_response_len=4000, rollout_skip_special_tokens=False)
    args = flat_args(Config(rollout=rollout))
    vars(args).update(more)
    model = Model(tokenizer, *turns)
    (made,) = await GenerateStage(model, tokenizer, rollout, args)([sample])
    return made, tokenizer


async def test_one_turn_is_scored_by_its_rubric() -> None:
    made, tokenizer = await roll("single", f"It is 1{END}")
    assert (made.status, made.reward) == (Status.COMPLETED, 1.0), made.error
    head = tokenizer.decode(made.tokens[: made.prompt_length], skip_special_tokens=False)
    assert head.startswith(f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\n0+1?{END}")
    assert text_of(made, tokenizer, 1) == f"It is 1{END}"
    assert made.metadata["verifiers"]["metrics"]["right"] == 1.0


async def test_several_turns_are_one_chat() -> None:
    made, tokenizer = await roll("turns", f"a{END}", f"0 or 1{END}")
    assert (made.status, made.reward) == (Status.COMPLETED, 0.0), made.error
    assert text_of(made, tokenizer, 1) == f"a{END}0 or 1{END}"
    assert (
        text_of(made, tokenizer, 0) == f"\n<|im_start|>user\nturn 1{END}\n<|im_start|>assistant\n"
    )


async def test_its_tools_are_called_by_it() -> None:
    calls = "".join(
        f'<tool_call>{{"name": "add", "arguments": {{"a": {a}, "b": 1}}}}</tool_call>'
        for a in (0, 13)
    )
    made, tokenizer = await roll("tool", calls + END, f"1{END}")
    assert (made.status, made.reward) == (Status.COMPLETED, 1.0), made.error
    assert text_of(made, tokenizer, 1) == f"{calls}{END}1{END}"
    assert text_of(made, tokenizer, 0) == (
        f"\n<|im_start|>tool\n1{END}\n<|im_start|>tool\nunlucky{END}\n<|im_start|>assistant\n"
    )


async def test_where_turns_are_used_up_it_is_truncated_and_scored() -> None:
    made, _ = await roll("turns", f"1{END}", max_turns=1)
    assert (made.status, made.reward) == (Status.TRUNCATED, 1.0), made.error


@pytest.mark.parametrize(
    ("kind", "said", "error"),
    [
        ("turns", "raise", "ValueError: no such move"),
        ("turns", "exit", "SystemExit: 3"),
        ("wrong", "1", "the judge is away"),
    ],
)
async def test_what_it_raises_fails_the_sample(kind: str, said: str, error: str) -> None:
    made, _ = await roll(kind, said + END)
    assert made.status is Status.FAILED
    assert made.reward is None
    assert error in (made.error or "")


@pytest.mark.parametrize(
    ("spec", "error"),
    [("no-such-environment", "cannot be loaded"), ("toy-verifiers?kind", "has no value")],
)
def test_one_that_is_not_there_is_refused(spec: str, error: str) -> None:
    with pytest.raises(DataError, match=error):
        build_source(f"verifiers:{spec}", DataConfig())
