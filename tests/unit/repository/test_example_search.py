"""The example of a searching agent: what it asks, what is trained, what is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from configs.hooks import load_hook
from pipeline.core.errors import GenerateError
from pipeline.core.time import MonotonicTime
from pipeline.core.types import Completion, Sample, VersionSpan
from stages.engine.mock import MockTokenizer
from stages.generate.check import check_sample
from tests.conftest import ROOT

AGENT = str(ROOT / "examples" / "search_agent" / "agent.py")
TOKENIZER = MockTokenizer()


class Says:
    """An engine that says one thing after another."""

    def __init__(self, *turns: str) -> None:
        self._turns = list(turns)
        self.read: list[str] = []

    async def generate(
        self, input_ids: Sequence[int], sampling_params: Mapping[str, Any], **_: Any
    ) -> Completion:
        self.read.append(TOKENIZER.decode(input_ids))
        assert sampling_params["stop"] == ["</search>", "</answer>"]
        ids = TOKENIZER.encode(self._turns.pop(0))
        return Completion(
            token_ids=tuple(ids),
            log_probs=tuple([-1.0] * len(ids)),
            spans=(VersionSpan(2, 0, len(ids)),),
            finish_reason="stop",
            text=TOKENIZER.decode(ids),
        )


async def run(*turns: str) -> tuple[Sample, Says]:
    engine = Says(*turns)
    args = SimpleNamespace(
        engine_client=engine,
        tokenizer=TOKENIZER,
        max_turns=3,
        context_length=None,
        time=MonotonicTime(),
    )
    function: Any = load_hook("custom_generate_function_path", AGENT)
    prompt = "Do it. Question: Which is the capital of Australia?"
    sample = Sample(index=0, prompt=prompt, tokens=TOKENIZER.encode(prompt), label="Canberra")
    got = await function(args, sample, {"max_new_tokens": 2000})
    check_sample(got, fallback_version=None)
    return got, engine


async def reward_of(sample: Sample) -> float:
    function: Any = load_hook("custom_rm_path", AGENT)
    return float(await function(SimpleNamespace(), sample))


def trained(sample: Sample) -> str:
    assert sample.loss_mask is not None
    response = sample.tokens[sample.prompt_length :]
    return TOKENIZER.decode([t for t, m in zip(response, sample.loss_mask, strict=True) if m])


async def test_it_searches_reads_and_answers() -> None:
    turns = ("<search>capital Australia</search>", "<answer>the canberra.</answer>")
    sample, engine = await run(*turns)
    assert "<information>Doc 1 (Title: Canberra) Canberra is the capital" in engine.read[1]
    assert trained(sample) == "".join(turns)
    assert sample.metadata["num_searches"] == 1
    assert await reward_of(sample) == 1.0


async def test_a_turn_without_tags_is_helped_by_a_search_for_the_question() -> None:
    sample, engine = await run("Hm.", "<answer>Sydney</answer>")
    assert "belongs in its tags. <information>Doc 1 (Title: Canberra)" in engine.read[1]
    assert trained(sample) == "Hm.<answer>Sydney</answer>"
    assert await reward_of(sample) == pytest.approx(0.2)


@pytest.mark.parametrize(("said", "reward"), [("It is Canberra.", 0.5), ("No idea.", 0.0)])
async def test_only_the_models_own_words_count(said: str, reward: float) -> None:
    """The search server has said Canberra in any case."""
    sample, _ = await run("Hm.", said, "Hm.")
    assert "Canberra is the capital" in sample.response
    assert await reward_of(sample) == reward


async def test_a_server_that_is_not_there_fails_the_rollout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEARCH_URL", "http://127.0.0.1:9/retrieve")
    function: Any = load_hook("custom_generate_function_path", AGENT)
    search = function.__globals__["search"]
    search.cache_clear()
    monkeypatch.setattr("stages.generate.search.tool.FIRST_PAUSE_SECONDS", 0.0)
    try:
        with pytest.raises(GenerateError, match=r"127\.0\.0\.1:9.* failed 3 times"):
            await run("<search>x</search>")
    finally:
        search.cache_clear()
