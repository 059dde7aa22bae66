"""Simulated engines, push and learner: times, versions in mid-response, failures, skill."""

from __future__ import annotations

import asyncio
import heapq
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.schema import ClusterConfig, MockConfig
from pipeline.core.errors import CheckpointError, EngineError
from pipeline.core.types import OptimizerStep, Sample, TrainBatch, TrainSample, VersionSpan
from stages.engine.mock import LabelledGenerate, MockEngineClient, MockPool, MockTokenizer, skill
from stages.engine.mock_server import answer
from stages.generate.answers import ExpertsWanted, parse_completion
from stages.learn.mock import MockLearner
from stages.publish.mock import MockTransport
from tests.manual_time import ManualTime


class SimulatedTime(ManualTime):
    """A time and a sleep in which time jumps to the next sleeper once nobody else has anything to
    do."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        event = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now() + seconds, self._count, event))
        await event.wait()

    async def run(self, main: asyncio.Task[object]) -> None:
        while not main.done():
            for _ in range(20):  # everybody who can run has run
                await asyncio.sleep(0)
            if self._sleepers and not main.done():
                at, _, event = heapq.heappop(self._sleepers)
                self.advance(max(at - self.now(), 0.0))
                event.set()


async def simulate(scenario: object, time: SimulatedTime) -> None:
    main = asyncio.ensure_future(scenario)  # type: ignore[arg-type]
    await time.run(main)
    main.result()


def parts(
    time: SimulatedTime,
    *,
    num_engines: int = 1,
    seed: int = 0,
    cluster: dict[str, Any] | None = None,
    **config: float,
) -> tuple[MockPool, MockEngineClient, MockTransport]:
    mock = MockConfig(**{"mock_seconds_per_token": 1.0, "mock_push_seconds": 0.0, **config})  # type: ignore[arg-type]
    pool = MockPool(config=mock, num_engines=num_engines, time=time, sleep=time.sleep)
    return (
        pool,
        MockEngineClient(pool, mock, MockTokenizer(), seed=seed),
        MockTransport(pool, mock, ClusterConfig(**cluster or {}), time=time, sleep=time.sleep),
    )


async def test_a_response_takes_its_tokens_time_and_carries_one_version() -> None:
    time = SimulatedTime()
    pool, client, _ = parts(time)

    async def scenario() -> None:
        await pool.start()
        done = await client.generate([1, 2], {"max_new_tokens": 1000})
        n = len(done.token_ids)
        assert time.now() == pytest.approx(n) and len(done.log_probs) == n
        assert done.spans == (VersionSpan(0, 0, n),) and done.finish_reason == "stop"
        assert all(p <= 0 for p in done.log_probs)

    await simulate(scenario(), time)


async def test_a_push_changes_the_version_in_mid_response_and_its_pause_is_felt() -> None:
    time = SimulatedTime()
    pool, client, transport = parts(
        time, mock_push_seconds=5.0, mock_length_mean=1000.0, mock_length_sigma=0.1
    )

    async def push_later() -> None:
        await time.sleep(10.5)
        result = await transport.push(1)
        assert (result.seconds, result.stall_seconds, result.num_engines) == (5.0, 5.0, 1)
        await time.sleep(10.0)
        await transport.push(2)

    async def scenario() -> None:
        await pool.start()
        async with asyncio.TaskGroup() as group:
            request = group.create_task(client.generate([1], {"max_new_tokens": 30}))
            group.create_task(push_later())
        assert request.result().spans == (
            VersionSpan(0, 0, 10),
            VersionSpan(1, 10, 20),
            VersionSpan(2, 20, 30),
        )
        assert request.result().finish_reason == "length"
        assert time.now() == pytest.approx(30 + 2 * 5)
        assert pool.version_of("mock://0") == 2

    await simulate(scenario(), time)


async def test_a_push_goes_over_the_pool_in_waves() -> None:
    time = SimulatedTime()
    pool, _, transport = parts(time, num_engines=5, mock_push_seconds=2.0)

    async def scenario() -> None:
        await pool.start()
        result = await transport.push(1)
        assert (result.seconds, result.stall_seconds, result.num_engines) == (4.0, 2.0, 5)
        assert set(pool.statistics().versions) == {1}

    await simulate(scenario(), time)


async def test_draining_lets_a_response_end_with_the_weights_that_it_began_with() -> None:
    time = SimulatedTime()
    pool, client, transport = parts(
        time,
        cluster={"weight_update_mode": "drain"},
        mock_push_seconds=5.0,
        mock_length_mean=1000.0,
        mock_length_sigma=0.1,
    )

    async def scenario() -> None:
        await pool.start()
        request = asyncio.create_task(client.generate([1], {"max_new_tokens": 30}))
        await time.sleep(10.0)
        result = await transport.push(1)
        assert request.done() and request.result().spans == (VersionSpan(0, 0, 30),)
        # the wait for the response is no pause: the engine decodes
        assert (result.seconds, result.stall_seconds) == (25.0, 5.0)

    await simulate(scenario(), time)


async def test_a_push_that_is_cancelled_leaves_the_old_version_serving() -> None:
    time = SimulatedTime()
    pool, client, transport = parts(time, mock_push_seconds=5.0)

    async def scenario() -> None:
        await pool.start()
        push = asyncio.create_task(transport.push(1))
        await time.sleep(1.0)
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await push
        done = await client.generate([1], {"max_new_tokens": 4})
        assert {s.version for s in done.spans} == {0} and pool.version_of("mock://0") == 0

    await simulate(scenario(), time)


async def test_lengths_have_the_mean_they_are_told() -> None:
    time = SimulatedTime()
    pool, client, _ = parts(
        time, mock_seconds_per_token=0.0, mock_length_mean=50.0, mock_length_sigma=0.7
    )
    lengths: list[int] = []

    async def scenario() -> None:
        await pool.start()
        for _ in range(3000):
            lengths.append(len((await client.generate([1], {"max_new_tokens": 10**6})).token_ids))

    # Zero-length sleeps would only slow this down.
    pool.engines["mock://0"]._sleep = lambda seconds: asyncio.sleep(0)
    await simulate(scenario(), time)
    assert np.mean(lengths) == pytest.approx(50.0, rel=0.06)
    assert np.std(np.log(lengths)) == pytest.approx(0.7, rel=0.1)


async def test_the_share_of_failures_is_as_told() -> None:
    time = SimulatedTime()
    pool, client, _ = parts(time, mock_seconds_per_token=0.0, mock_failure_rate=0.25)
    pool.engines["mock://0"]._sleep = lambda seconds: asyncio.sleep(0)
    failures = 0

    async def scenario() -> None:
        nonlocal failures
        await pool.start()
        for _ in range(1000):
            try:
                await client.generate([1], {"max_new_tokens": 4})
            except EngineError as error:
                assert "--mock-failure-rate 0.25" in str(error)
                failures += 1

    await simulate(scenario(), time)
    assert 200 < failures < 300


async def test_skill_grows_with_the_version() -> None:
    time = SimulatedTime()
    pool, client, transport = parts(time, mock_seconds_per_token=0.0)
    pool.engines["mock://0"]._sleep = lambda seconds: asyncio.sleep(0)
    prompts = [Sample(prompt=f"question {i}", label=f"answer {i}") for i in range(300)]
    tokenizer = MockTokenizer()

    async def share_right() -> float:
        right = 0
        for prompt in prompts:
            done = await client.generate(
                tokenizer.encode(str(prompt.prompt)), {"max_new_tokens": 1000}
            )
            right += done.text == prompt.label
        return right / len(prompts)

    async def scenario() -> None:
        await pool.start()
        client.learn_answers(prompts)
        assert await share_right() == pytest.approx(skill(0), abs=0.08)
        await transport.push(20)
        assert await share_right() == pytest.approx(skill(20), abs=0.08)

    await simulate(scenario(), time)
    assert skill(0) < 0.3 and skill(40) > 0.9


async def test_taught_tells_the_labels_before_it_generates() -> None:
    time = SimulatedTime()
    _, client, _ = parts(time)
    order: list[str] = []
    client.learn_answers = lambda samples: order.append(f"learn {samples[0].label}")  # type: ignore[method-assign]

    async def generate(samples: list[Sample], **how: Any) -> list[Sample]:
        order.append(f"generate {how}")
        return samples

    labelled = LabelledGenerate(generate, client)  # type: ignore[arg-type]
    how = {"evaluation": True, "sampling": {"top_p": 0.5}}
    await labelled([Sample(prompt="q", label="a")], **how)  # type: ignore[arg-type]
    assert order == ["learn a", f"generate {how}"]


def test_the_tokenizer_round_trips_and_hides_thinking() -> None:
    tokenizer = MockTokenizer()
    assert tokenizer.decode(tokenizer.encode("grüße")) == "grüße"
    ids = [tokenizer.THINK, *tokenizer.encode("4"), tokenizer.EOS]
    assert (
        tokenizer.decode(ids) == "4"
        and tokenizer.decode(ids, skip_special_tokens=False) == "<think>4<eos>"
    )


def test_words_are_tokens_of_their_own_the_longest_first() -> None:
    tokenizer = MockTokenizer((" word", " words", "Spell", "("))
    text = "Spell two words, (a word)"
    ids = tokenizer.encode(text)
    # Spell, " two", " words", ", ", "(", "a", " word", ")"
    assert len(ids) == 1 + 4 + 1 + 2 + 1 + 1 + 1 + 1
    assert tokenizer.decode(ids) == text == tokenizer.decode(ids, skip_special_tokens=False)
    assert max(ids) < tokenizer.vocab_size


def test_a_chat_with_an_image_has_its_text_and_a_mark() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": content}]
    text = MockTokenizer().apply_chat_template(chat, False, add_generation_prompt=True)
    assert text == "user: <image>What?\nassistant: "
    assert MockTokenizer().apply_chat_template(chat, False) == "user: <image>What?\n"


def batch(staleness: int) -> TrainBatch:
    one = TrainSample(
        index=0,
        group_index=0,
        tokens=np.arange(6),
        response_length=4,
        loss_mask=np.ones(4, np.uint8),
        reward=1.0,
        staleness=staleness,
        rollout_log_probs=np.zeros(4, np.float32),
        advantages=np.ones(4, np.float32),
    )
    step = OptimizerStep(per_rank=(((one,),),), num_samples=1, num_loss_tokens=4)
    return TrainBatch(rollout_id=0, policy_version=staleness, steps=(step, step))


async def test_the_learner_reports_counts_and_resumes(tmp_path: Path) -> None:
    time = SimulatedTime()

    async def scenario() -> None:
        learner = MockLearner(MockConfig(mock_step_seconds=3.0), time=time, sleep=time.sleep)
        fresh, stale = (
            (await learner.step(batch(0))).metrics,
            (await learner.step(batch(4))).metrics,
        )
        assert time.now() == 6.0 and fresh["seconds"] == 3.0 and fresh["num_tokens"] == 12
        assert (
            fresh["kl_rollout_old"] == 0.0 < stale["kl_rollout_old"]
            and stale["ess_fraction"] < fresh["ess_fraction"] == 1.0
        )
        await learner.save(tmp_path, None)
        again = MockLearner(MockConfig())
        await again.load(tmp_path)
        assert again.num_steps == learner.num_steps == 4
        with pytest.raises(CheckpointError, match="mock runs only"):
            await again.load(tmp_path / "hf")

    await simulate(scenario(), time)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, stages.engine.mock, stages.learn.mock, stages.publish.mock,"
        " stages.generate.generate, stages.evaluate;heavy = {'torch', 'transformers', 'ray',"
        " 'megatron', 'sglang'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_tokenizer_is_called_as_those_of_transformers() -> None:
    tokenizer = MockTokenizer(["<a>"])
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [97, 98]
    assert tokenizer(["a", "b<a>"])["input_ids"] == [[97], [98, *tokenizer.encode("<a>")]]


def test_an_answer_without_a_model_has_routed_experts() -> None:
    wanted = ExpertsWanted(start=0, num_inputs=5, num_layers=3, top_k=2)
    body = answer(4, "42", experts_shape=(8, 3, 2))
    completion = parse_completion(body, "engine", experts=wanted)
    assert completion.routed_experts is not None
    assert completion.routed_experts.shape == (8, 3, 2)
    assert completion.routed_experts.ravel().tolist() == list(range(48))
    assert len(completion.log_probs) == len(completion.token_ids) == 4
