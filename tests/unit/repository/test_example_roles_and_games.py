"""The examples guess_the_number and solver_verifier: what is said, trained and rewarded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.guess_the_number import game
from examples.solver_verifier import make_data, roles
from pipeline.core.time import MonotonicTime
from pipeline.core.types import Completion, Sample, VersionSpan
from stages.engine.mock import MockTokenizer
from stages.generate.check import check_sample
from tests.conftest import ROOT

TOKENIZER = MockTokenizer()


class Says:
    """An engine that says one thing after another."""

    def __init__(self, *turns: str) -> None:
        self._turns = list(turns)
        self.read: list[str] = []
        self.most: list[int] = []

    async def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], **_: Any
    ) -> Completion:
        self.read.append(TOKENIZER.decode(input_ids))
        self.most.append(sampling_params["max_new_tokens"])
        ids = TOKENIZER.encode(self._turns.pop(0))
        return Completion(
            token_ids=tuple(ids),
            log_probs=tuple([-1.0] * len(ids)),
            spans=(VersionSpan(2, 0, len(ids)),),
            finish_reason="stop",
            text=TOKENIZER.decode(ids),
        )


def args_for(engine: Says, max_turns: int = 13) -> Any:
    return SimpleNamespace(
        engine_client=engine,
        tokenizer=TOKENIZER,
        max_turns=max_turns,
        context_length=None,
        time=MonotonicTime(),
    )


def sample_of(prompt: str, label: str) -> Sample:
    return Sample(
        group_index=0, index=5, prompt=prompt, tokens=TOKENIZER.encode(prompt), label=label
    )


def trained(sample: Sample) -> str:
    assert sample.loss_mask is not None
    response = sample.tokens[sample.prompt_length :]
    return TOKENIZER.decode([t for t, m in zip(response, sample.loss_mask, strict=True) if m])


async def play(*guesses: str, secret: str = "17") -> tuple[Sample, list[Any]]:
    """The sample, and what every step returned."""
    environment, sample = game.Environment(SimpleNamespace(max_turns=13)), sample_of("", secret)
    assert await environment.reset(sample) is None  # the row's prompt is what the model reads
    return sample, [await environment.step(guess) for guess in guesses]


async def test_a_game_that_is_won() -> None:
    sample, steps = await play("15", "20", "um", "it is 17")
    assert steps[:3] == [("higher: ", 0, False), ("lower: ", 0, False), ("a number: ", 0, False)]
    assert steps[3] == ("", pytest.approx(1 - 3 / 13), True)
    assert sample.metadata["guesses"] == [15, 20, None, 17]


async def test_the_last_of_thirteen_turns_wins_too_and_a_lost_game_nothing() -> None:
    _, steps = await play(*["15"] * 12, "17")
    assert steps[-1] == ("", pytest.approx(1 / 13), True)
    assert all(reward == 0 and not done for _, reward, done in steps[:-1])


async def test_a_guess_of_any_length_is_a_number() -> None:
    _, steps = await play("9" * 10_000)
    assert steps == [("lower: ", 0.0, False)]


async def solve(answer: str, verdict: str) -> tuple[list[Sample], Says]:
    engine = Says(answer, verdict)
    made = await roles.generate(
        args_for(engine), sample_of("backward: sun", "nus"), {"max_new_tokens": 50}
    )
    for sample in made:
        check_sample(sample, fallback_version=None)
        sample.reward = await roles.reward_func(None, sample)
    return made, engine


@pytest.mark.parametrize(
    ("answer", "verdict", "rewards"),
    [
        ("nus", "yes", [1.0, 1.0]),
        ("nus", "no", [1.0, 0.0]),
        ("sun", "no", [0.0, 1.0]),
        ("sun", "yes", [0.0, 0.0]),
        ("sun", "well", [0.0, 0.0]),
    ],
)
async def test_each_role_has_its_own_reward(
    answer: str, verdict: str, rewards: list[float]
) -> None:
    (solver, verifier), engine = await solve(answer, verdict)
    assert [solver.reward, verifier.reward] == rewards
    assert engine.read == ["backward: sun", f"backward: sun -> {answer} Right? "]
    assert engine.most == [50, 4]
    assert [trained(solver), trained(verifier)] == [answer, verdict]
    assert solver.index == verifier.index == 5 and solver.metadata is not verifier.metadata


async def test_a_role_is_compared_with_itself() -> None:
    samples = [s for a, v in (("nus", "no"), ("sun", "no")) for s in (await solve(a, v))[0]]
    args = SimpleNamespace(reward_key=None)
    raw, compared = roles.post_process_rewards(args, samples)
    assert raw == [1.0, 0.0, 0.0, 1.0]
    assert compared == [0.5, -0.5, -0.5, 0.5]
    samples[2].group_index = samples[3].group_index = 1
    assert roles.post_process_rewards(args, samples)[1] == [0.0] * 4


def test_both_ask_the_verifier_in_the_same_words() -> None:
    assert roles.QUESTION == make_data.QUESTION


@pytest.mark.parametrize(
    ("example", "names"),
    [("guess_the_number", ["secrets", "warm-up"]), ("solver_verifier", ["warm-up"])],
)
def test_the_data_are_those_that_the_script_makes(
    example: str, names: list[str], tmp_path: Path
) -> None:
    folder = ROOT / "examples" / example
    subprocess.run([sys.executable, str(folder / "make_data.py"), str(tmp_path)], check=True)
    for name in names:
        assert (tmp_path / f"{name}.jsonl").read_text() == (folder / f"{name}.jsonl").read_text()
