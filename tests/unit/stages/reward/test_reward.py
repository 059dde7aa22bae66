"""The reward stage: scorers, whose they are, where they run, and what happens when they fail."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from configs.schema import DataConfig, RewardConfig
from pipeline.core.errors import ConfigError
from pipeline.core.types import Sample, Status
from stages.reward import RewardStage, build_reward
from stages.reward.pool import WorkerPool
from stages.source import build_source

ARGS = SimpleNamespace(scale=2.0)
Make = Callable[..., RewardStage]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """A stage with these flags; `code` is the user's file."""
    stages: list[RewardStage] = []

    def build(code: str | None = None, **flags: Any) -> RewardStage:
        if code:
            path = tmp_path / f"rm{len(stages)}.py"
            path.write_text(code)
            flags["custom_rm_path"] = str(path)
        stages.append(build_reward(RewardConfig(**flags), ARGS))
        return stages[-1]

    yield build
    for stage in stages:
        await stage.close()


def answered(response: str, label: Any = None, **fields: Any) -> Sample:
    return Sample(index=0, response=response, label=label, status=Status.COMPLETED, **fields)


def children() -> set[int]:
    """Our own worker processes (multiprocessing's resource tracker stays for the life of the test
    process)."""
    found = psutil.Process().children(recursive=True)
    return {
        p.pid
        for p in found
        if p.status() != psutil.STATUS_ZOMBIE
        and not any("resource_tracker" in c for c in p.cmdline())
    }


# -- built-in scorers, in real worker processes ----------------------------------------------------


async def test_reasoning_gym_scores_what_the_source_made(make: Make) -> None:
    source = build_source("reasoning_gym:chain_sum?size=2", DataConfig(), 3)
    samples = source.get_samples(1)[0]
    right = samples[0].label
    for sample, response in zip(
        samples,
        (f"so <answer>{right}</answer>", f" {right} ", f"<answer>{int(right) + 1}</answer>"),
        strict=True,
    ):
        sample.response, sample.status = response, Status.COMPLETED
    await make()(samples)
    assert [s.error for s in samples] == [None] * 3
    assert samples[0].reward == samples[1].reward == 1.0
    assert 0 <= samples[2].reward < 1


async def test_a_task_that_scores_by_tuples_gets_its_tuples_back(make: Make) -> None:
    """arc_agi compares grids of tuples, which JSON alone would turn into lists: then no answer
    would be right."""
    sample = build_source("reasoning_gym:arc_agi?size=1", DataConfig()).get_samples(1)[0][0]
    sample.response, sample.status = f"<answer>{sample.label}</answer>", Status.COMPLETED
    await make()([Sample.from_dict(sample.to_dict()), sample])
    assert sample.reward == 1.0


async def test_math_verify(make: Make) -> None:
    samples = [
        answered(r"Hence \boxed{\frac{1}{2}}", "0.5"),
        answered("The answer is $x = 7$.", "7"),
        answered(r"\boxed{8}", "7"),
        answered("I do not know", "7"),
    ]
    await make(rm_type="math")(samples)
    assert [s.error for s in samples] == [None] * 4
    assert [s.reward for s in samples] == [1.0, 1.0, 0.0, 0.0]


async def test_cheap_scorers_start_no_process(make: Make) -> None:
    before = children()
    samples = [
        answered(" 4\n", 4),
        answered("5", 4),
        answered("5", 4, metadata={"rm_type": "random"}),
    ]
    await make(rm_type="exact_match")(samples)
    assert [s.reward for s in samples[:2]] == [1.0, 0.0] and 0 <= samples[2].reward < 1
    assert children() == before


@pytest.mark.parametrize(
    ("name", "response", "reward"),
    [
        ("deepscaler", r"<think>6 * 7</think> hence \boxed{42}", 1.0),
        ("boxed_math", r"hence \boxed{42}", 1.0),
        ("f1", "42 or so", 0.5),
        ("gpqa", r"hence \boxed{42}", 1.0),
        ("dapo", "Answer: 42", {"score": 1.0, "acc": 1.0, "pred": "42"}),
        ("dapo", "Answer: 41", {"score": -1.0, "acc": 0.0, "pred": "41"}),
    ],
)
async def test_slimes_scorers_by_name(make: Make, name: str, response: str, reward: Any) -> None:
    sample = answered(response, "42")
    await make(rm_type=name, reward_threshold=0.1)([sample])
    assert (sample.error, sample.reward) == (None, reward)
    by_row = answered(response, "42", metadata={"rm_type": name})
    await make(rm_type="random")([by_row])
    assert (by_row.error, by_row.reward) == (None, reward)


async def test_a_prompt_that_opens_the_thoughts_is_known_to_the_scorer(make: Make) -> None:
    sample = answered(r"perhaps \boxed{42}", "42", prompt="<|assistant|><think>\n")
    await make(rm_type="deepscaler")([sample])
    assert sample.reward == 0.0


async def test_no_scorer_is_a_failure_that_names_them(make: Make) -> None:
    sample = answered("x")
    await make()([sample])
    assert sample.status is Status.FAILED and sample.reward is None
    assert "rm_type None, expected one of math, boxed_math, deepscaler, dapo, " in sample.error


# -- the user's own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "async def reward_func(args, sample): return args.scale * len(sample.response)",
        "def reward_func(args, sample): return args.scale * len(sample.response)",
        (
            "async def f(args, sample): return args.scale * len(sample.response)\ndef"
            " reward_func(args, sample): return f(args, sample)"
        ),
        (
            "import numpy as np\ndef reward_func(args, sample): return np.float32(args.scale *"
            " len(sample.response))"
        ),
    ],
    ids=["async", "sync", "sync returning an awaitable", "numpy"],
)
async def test_custom(make: Make, code: str) -> None:
    samples = [answered("abc"), answered("a")]
    await make(code)(samples)
    assert [s.reward for s in samples] == [6.0, 2.0] and type(samples[0].reward) is float


async def test_a_dict_keeps_its_entries_and_must_have_the_one_to_train_on(make: Make) -> None:
    code = "async def reward_func(args, sample): return {'score': 1, 'format': 0.5, 'why': 'ok'}"
    sample, other = answered("a"), answered("a")
    await make(code)([sample])
    assert sample.reward == {"score": 1.0, "format": 0.5, "why": "ok"}
    await make(code, reward_key="format")([other])
    assert other.reward_value("format") == 0.5
    for key, says in (
        ("style", "no 'style', only 'score', 'format', 'why'"),
        ("why", "expected a finite number"),
    ):
        bad = answered("a")
        await make(code, reward_key=key)([bad])
        assert bad.status is Status.FAILED and bad.reward is None and says in bad.error


async def test_a_samples_own_path_comes_before_the_flag(make: Make, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def mine(args, sample): return 5.0")
    sample = answered("a", custom_rm_path=f"{tmp_path / 'own.py'}:mine")
    await make("def reward_func(args, sample): return 1.0")([sample])
    assert sample.reward == 5.0


async def test_a_reward_set_while_generating_stays_and_is_checked_too(make: Make) -> None:
    stage = make("def reward_func(args, sample): raise AssertionError('scored twice')")
    sample, bad = answered("a", reward=0.75), answered("a", reward=math.nan)
    await stage([sample, bad])
    assert sample.reward == 0.75 and sample.status is Status.COMPLETED
    assert bad.status is Status.FAILED


@pytest.mark.parametrize(
    "value", ["float('nan')", "float('inf')", "None", "'1'", "{'score': float('nan')}"]
)
async def test_what_is_no_number_fails_and_never_counts_as_zero(make: Make, value: str) -> None:
    sample, neighbour = answered("a"), answered("b")
    await make(f"def reward_func(args, sample): return {value} if sample.response == 'a' else 1.0")(
        [sample, neighbour]
    )
    assert sample.status is Status.FAILED and sample.reward is None
    assert sample.error.startswith("RewardError: the reward") and "finite number" in sample.error
    assert neighbour.reward == 1.0 and neighbour.status is Status.COMPLETED


async def test_what_raises_fails_with_its_words(make: Make) -> None:
    sample = answered("a")
    await make("def reward_func(args, sample): raise KeyError('colour')")([sample])
    assert sample.status is Status.FAILED
    assert re.fullmatch(r"KeyError: 'colour' \(.*/rm0\.py line 1\)", str(sample.error))


async def test_threshold(make: Make) -> None:
    samples = [answered(x) for x in ("0.5", "0.49", "-1", "1")]
    await make(
        "def reward_func(args, sample): return float(sample.response)", reward_threshold=0.5
    )(samples)
    assert [s.reward for s in samples] == [0.5, 0.0, -1.0, 1.0]


async def test_the_threshold_is_for_the_reward_that_is_trained_on_alone(make: Make) -> None:
    sample = answered("a")
    await make(
        "def reward_func(args, sample): return {'score': 0.4, 'length': 0.3, 'worse': -2}",
        reward_threshold=0.5,
    )([sample])
    assert sample.reward == {"score": 0.0, "length": 0.3, "worse": -2.0}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("np.float32(0.5)", 0.5),
        ("np.array([0.5])", 0.5),
        ("np.bool_(True)", 1.0),
        ("torch.tensor(0.5)", 0.5),
        ("torch.tensor([0.5], requires_grad=True)", 0.5),
        ("True", 1.0),
        ("{'score': torch.tensor(2), 'of': np.int64(3)}", {"score": 2.0, "of": 3.0}),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_scalars_of_numpy_and_torch_are_numbers(
    make: Make, kind: str, value: str, kept: Any
) -> None:
    sample = answered("a")
    code = f"import numpy as np, torch\n{kind} reward_func(args, sample): return {value}"
    await make(code)([sample])
    assert sample.error is None and sample.reward == kept


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("float('nan')", "the reward's 'style' is nan: expected a finite number"),
        ("np.float32('inf')", "the reward's 'style' is inf"),
        ("{1, 2}", "the reward's 'style' is {1, 2}: expected a number, or what JSON can say"),
        ("Sample()", "the reward's 'style' is Sample("),
        ("np.zeros(2)", "the reward's 'style' is array([0., 0.])"),
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_entry_that_cannot_be_kept_is_named_by_its_key(
    make: Make, kind: str, entry: str, says: str
) -> None:
    sample = answered("a")
    code = (
        "import numpy as np\nfrom pipeline.core.types import Sample\n"
        f"{kind} reward_func(args, sample): return {{'score': 1.0, 'style': {entry}}}"
    )
    await make(code)([sample])
    assert sample.status is Status.FAILED and sample.reward is None
    assert says in sample.error


async def test_failed_samples_are_not_scored(make: Make) -> None:
    failed = Sample(index=0, response="a", status=Status.FAILED, error="engine")
    await make("def reward_func(args, sample): return 1.0")([failed])
    assert failed.reward is None and failed.error == "engine"


async def test_a_group_reward_compares_all_samples(make: Make) -> None:
    stage = make(
        "async def reward_func(args, samples): return [len(s.response) - len(samples[0].response)"
        " for s in samples]",
        group_rm=True,
    )
    samples = [answered("ab"), answered("abcd")]
    await stage(samples)
    assert [s.reward for s in samples] == [0.0, 2.0]
    torn = [answered("ab"), Sample(index=1, status=Status.FAILED, error="engine")]
    await stage(torn)  # there is no comparison with one missing: it is generated again first
    assert torn[0].reward is None and torn[0].status is Status.COMPLETED
    short = make("def reward_func(args, samples): return [1.0]", group_rm=True)
    await short(samples)
    assert all(
        s.status is Status.FAILED and "returned 1 rewards for a group of 2" in s.error
        for s in samples
    )


def test_flags_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="--group-rm needs --custom-rm-path"):
        build_reward(RewardConfig(group_rm=True), ARGS)
    with pytest.raises(ConfigError, match="--reward-num-workers 0"):
        build_reward(RewardConfig(reward_num_workers=0), ARGS)
    with pytest.raises(ConfigError, match="absent"):
        build_reward(RewardConfig(custom_rm_path="absent.py"), ARGS)


# -- deadlines and crashes -------------------------------------------------------------------------


HANGS = {
    "async": "async def reward_func(args, sample):\n {0}\n  await asyncio.Event().wait()",
    "plain": "def reward_func(args, sample):\n {0}\n  while True: pass",
    "blocks": "async def reward_func(args, sample):\n {0}\n  while True: pass",
    "sleeps": "async def reward_func(args, sample):\n {0}\n  time.sleep(600)",
    "swallows": (
        "async def reward_func(args, sample):\n {0}\n  while True:\n   try: time.sleep(600)\n"
        "   except Exception: pass"
    ),
}


@pytest.mark.parametrize("kind", HANGS)
async def test_an_answer_not_judged_in_time_is_wrong_and_says_so(make: Make, kind: str) -> None:
    hangs = HANGS[kind].format("if sample.response == 'hang':")
    stage = make(f"import asyncio, time\n{hangs}\n return 1.0", reward_timeout_seconds=1.0)
    # more than there are workers: none of them may take the place of the last
    samples = [*(answered("hang") for _ in range(3)), answered("fine")]
    await stage(samples)
    for sample in samples[:-1]:
        assert (sample.reward, sample.status, sample.error) == (0.0, Status.COMPLETED, None)
        assert "(--reward-timeout-seconds)" in sample.metadata["unjudged"]
    assert samples[-1].reward == 1.0 and "unjudged" not in samples[-1].metadata


async def test_an_answer_that_hangs_math_is_wrong_and_its_neighbours_are_scored(make: Make) -> None:
    samples = [answered(rf"\boxed{{{x}}}", "7") for x in ("7", "9^{9^{9^9}}", "8")]
    await make(rm_type="math", reward_timeout_seconds=10.0)(samples)
    assert [s.reward for s in samples] == [1.0, 0.0, 0.0]
    assert [s.status for s in samples] == [Status.COMPLETED] * 3
    assert ["unjudged" in s.metadata for s in samples] == [False, True, False]


async def test_a_scorer_that_judges_none_any_more_fails(make: Make) -> None:
    stage = make(
        "import asyncio\nasync def reward_func(args, sample):\n"
        " if sample.response == 'hang': await asyncio.Event().wait()\n return 1.0",
        reward_timeout_seconds=0.05,
    )
    for turn in (answered("fine", group_index=7), None):  # a judged answer begins the count anew
        samples = [answered("hang", group_index=group) for group in (0, 0, 0, 1, 1, 2)]
        await stage(samples)
        assert [s.reward for s in samples] == [0.0] * 6
        if turn is not None:
            await stage([turn])
    last = answered("hang", group_index=3)
    await stage([last])
    assert last.status is Status.FAILED and last.reward is None
    assert "3 other groups" in last.error and "rm0.py that hangs" in last.error


async def test_a_group_reward_that_hangs_fails_for_nobody_knows_whose_fault_it_is(
    make: Make,
) -> None:
    stage = make(
        "def reward_func(args, samples):\n while True: pass",
        group_rm=True,
        reward_timeout_seconds=1.0,
    )
    samples = [answered("a"), answered("b")]
    await stage(samples)
    assert all(s.status is Status.FAILED and "no score after 1 s" in s.error for s in samples)


@pytest.fixture
async def pool() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(2)
    yield pool
    pool.close()


async def test_a_hanging_scorer_is_killed_its_neighbour_is_not(pool: WorkerPool) -> None:
    first = await pool.run(os.getpid, (), 60)
    second, other = await asyncio.gather(pool.run(os.getpid, (), 60), pool.run(os.getpid, (), 60))
    assert len({first, second, other}) == 2 and first != os.getpid()
    neighbour = asyncio.ensure_future(pool.run(time.sleep, (1.0,), 60))
    with pytest.raises(TimeoutError, match=r"no score after 0\.2 s .* its worker was killed"):
        await pool.run(signal.pause, (), 0.2)
    assert await neighbour is None
    left = {second, other} & children()
    assert len(left) == 1  # the one that hung is gone
    pids = {await pool.run(os.getpid, (), 60)}
    assert pids == left


async def test_a_crashed_worker_is_replaced_and_errors_are_the_scorers_own(
    pool: WorkerPool,
) -> None:
    with pytest.raises(RuntimeError, match="the scorer's process died"):
        await pool.run(os._exit, (3,), 60)
    assert await pool.run(math.sqrt, (4,), 60) == 2.0
    with pytest.raises(ValueError, match="math domain error"):
        await pool.run(math.sqrt, (-1,), 60)
    pid = await pool.run(os.getpid, (), 60)
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, (1, 0), 60)
    assert await pool.run(os.getpid, (), 60) == pid  # an error is no reason to start a new process


async def test_a_cancelled_score_takes_its_worker_with_it(pool: WorkerPool) -> None:
    await pool.run(os.getpid, (), 60)
    before = children()
    task = asyncio.ensure_future(pool.run(signal.pause, (), 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(children()) == len(before) - 1
    assert await pool.run(math.sqrt, (4,), 60) == 2.0


async def test_nothing_is_left_after_close() -> None:
    before = children()
    stage = build_reward(RewardConfig(rm_type="math", reward_num_workers=2), ARGS)
    samples = [answered(r"\boxed{7}", "7"), answered(r"\boxed{7}", "7")]
    await stage(samples)
    assert len(children() - before) == 2
    await stage.close()
    await stage.close()
    assert children() == before
    late = answered(r"\boxed{7}", "7")
    await stage([late])
    assert late.status is Status.FAILED and "closed" in late.error and children() == before
