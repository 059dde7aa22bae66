"""Where a user's reward function runs, what it may change, and what is said of one that blocks."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.types import Sample, Status
from pipeline.core.user_errors import in_words
from stages.reward.pool import Overdue, WorkerPool
from stages.reward.user_function import UserError, UserFunction

Make = Callable[..., UserFunction]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    workers, made = WorkerPool(1), list[Path]()

    def build(code: str, seconds: float = 30.0, **args: Any) -> UserFunction:
        path = tmp_path / f"mine{len(made)}.py"
        path.write_text(code)
        made.append(path)
        return UserFunction(str(path), SimpleNamespace(**args), workers, seconds)

    yield build
    workers.close()


async def test_a_plain_function_runs_in_the_main_thread_of_another_process(make: Make) -> None:
    """So signal.alarm works in it, by which math_verify's own deadlines are kept."""
    function = make(
        "import os, threading\nfrom math_verify import parse, verify\n"
        "def reward_func(args, sample):\n"
        " assert threading.current_thread() is threading.main_thread()\n"
        " assert verify(parse('$7$', parsing_timeout=3), parse(sample.response), timeout_seconds=3)"
        "\n return os.getpid()"
    )
    sample = Sample(response=r"\boxed{7}")
    pids = {await function(sample), await function(sample)}
    assert len(pids) == 1 and pids != {os.getpid()}


async def test_an_async_function_runs_on_the_loop(make: Make) -> None:
    function = make("import os\nasync def reward_func(args, sample): return os.getpid()")
    assert await function(Sample()) == os.getpid()


@pytest.mark.parametrize(
    "code",
    [
        "import os\nasync def f(sample): return os.getpid()\n"
        "def reward_func(args, sample): return f(sample)",
        "import os\nclass Judge:\n async def __call__(self, args, sample): return os.getpid()\n"
        "reward_func = Judge()",
        "import functools, os\nasync def f(args, sample, x): return os.getpid()\n"
        "reward_func = functools.partial(f, x=1)",
    ],
    ids=["plain returning an awaitable", "object", "partial"],
)
async def test_an_async_function_in_disguise_runs_on_the_loop_too(make: Make, code: str) -> None:
    function = make(code)
    assert [await function(Sample()) for _ in range(2)] == [os.getpid()] * 2


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_a_function_writes_into_its_samples_stays(make: Make, kind: str) -> None:
    function = make(
        f"{kind} reward_func(args, samples):\n"
        " samples[1].metadata['why'] = ['short']\n samples[1].remove_sample = True\n"
        " samples[0].grade = [1]\n samples[1].rank += 1\n"
        " return [args.scale, 2.0]",
        scale=3,
    )
    samples = [Sample(metadata={"a": 1}, tokens=[1, 2]), Sample(metadata={"b": 2})]
    tokens = samples[0].tokens
    samples[1].rank = 1
    assert await function(samples) == [3, 2.0]
    assert [s.attributes() for s in samples] == [{"grade": [1]}, {"rank": 2}]
    assert samples == [
        Sample(metadata={"a": 1}, tokens=[1, 2]),
        Sample(metadata={"b": 2, "why": ["short"]}, remove_sample=True),
    ]
    assert samples[0].tokens is tokens  # what did not change was not sent back


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_raises_is_told_with_its_line(make: Make, kind: str) -> None:
    function = make(
        f"class Odd(Exception):\n def __init__(self, a, b): super().__init__(a)\n"
        f"{kind} reward_func(args, sample):\n  raise Odd('no', 'pickle')"
    )
    with pytest.raises(Exception) as error:
        await function(Sample())
    said = str(error.value) if isinstance(error.value, UserError) else in_words(error.value)
    assert re.fullmatch(r"Odd: no \(.*mine0\.py line 4\)", said)


async def test_a_function_that_only_this_process_can_import_runs_in_threads_and_why_is_said(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    function = make(
        f"import os\nif os.getpid() != {os.getpid()}: raise OSError('no display here')\n"
        "def reward_func(args, sample): return os.getpid()"
    )
    assert [await function(Sample()) for _ in range(2)] == [os.getpid()] * 2
    said = [r.message for r in caplog.records]
    assert len(said) == 1 and "runs in threads" in said[0] and "no display here" in said[0]


async def test_a_sample_that_cannot_be_sent_is_scored_here(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    function = make("import os\ndef reward_func(args, sample): return os.getpid()")
    assert await function(Sample(metadata={"lock": threading.Lock()})) == os.getpid()
    assert "cannot be sent there (cannot pickle" in caplog.text


NOT_SAID = {
    "{'score': 1.0, 'parts': {1, 2}}": "the reward's 'parts' is {1, 2}: expected",
    "[0.0, {'a': [object()]}]": "the reward's 'a' is [<object object",
    "sample.metadata.update(seen={3})": "sample.metadata['seen'] is a set: expected what",
    "sample.metadata.update(a={'b': [0, print]})": "sample.metadata['a']['b'][1] is a builtin_f",
    "sample.metadata.update(n=10 ** 5000)": "ValueError: Exceeds the limit",
    "10 ** 5000": "OverflowError: int too large",
}


@pytest.mark.parametrize(("result", "says"), NOT_SAID.items())
async def test_what_json_cannot_carry_back_is_named_by_its_key(
    make: Make, result: str, says: str
) -> None:
    function = make(f"def reward_func(args, sample): return {result} or 1.0")
    with pytest.raises(UserError, match=re.escape(says)):
        await function(Sample())


async def test_nothing_that_a_function_returns_runs_in_this_process(
    make: Make, tmp_path: Path
) -> None:
    """Unpickling it would: its answer is data here."""
    function = make(
        "import pathlib\n"
        "class Trap:\n"
        " def __reduce__(self):\n"
        f"  return pathlib.Path.touch, (pathlib.Path({str(tmp_path / 'x')!r}),)\n"
        "def reward_func(args, sample): sample.metadata['t'] = Trap(); return 1.0"
    )
    with pytest.raises(UserError, match=r"sample\.metadata\['t'\] is a Trap: expected what"):
        await function(Sample())
    assert not (tmp_path / "x").exists()


async def test_a_samples_own_types_come_back_as_they_are(make: Make) -> None:
    function = make(
        "from slipstream import Status\nfrom pipeline.core.types import VersionSpan\n"
        "import numpy\n"
        "def reward_func(args, sample):\n"
        " sample.status = Status.TRUNCATED\n"
        " sample.weight_versions = [VersionSpan(2, 0, 1)]\n"
        " sample.metadata = {(1, 2): 'pair', 'odd': (float('inf'), '\\ud800')}\n"
        " sample.rollout_routed_experts = numpy.ones((1, 2, 3), dtype=numpy.uint8)\n"
        " return {'score': numpy.float32(0.5)}"
    )
    sample = Sample()
    assert await function(sample) == {"score": 0.5}
    assert sample.status is Status.TRUNCATED
    assert sample.weight_versions[0].version == 2
    assert sample.metadata == {(1, 2): "pair", "odd": (float("inf"), "\ud800")}
    assert sample.rollout_routed_experts.shape == (1, 2, 3)


async def test_a_blocking_async_function_is_named_with_its_line(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stages.reward.loop_guard.NAMED_AFTER_SECONDS", 0.1)
    function = make(
        "async def reward_func(args, sample):\n while True:\n  pass  # an await is missing",
        seconds=1.5,
    )
    with pytest.raises(Overdue, match=r"it held the event loop for 1\.5 s"):
        await function(Sample())
    assert any(
        "mine0.py holds the event loop" in m and f"line {line})" in m
        for m in caplog.messages
        for line in (2, 3)
    )


async def test_cancelling_reaches_an_async_function(make: Make) -> None:
    """Its deadline is a cancellation: `finally` runs, and what it awaits is let go."""
    function = make(
        "import asyncio\nasync def reward_func(args, sample):\n"
        " try: await asyncio.Event().wait()\n"
        " finally:\n  await asyncio.sleep(0)\n  sample.metadata['closed'] = True",
        seconds=0.1,
    )
    sample = Sample()
    with pytest.raises(Overdue, match=r"no score after 0\.1 s"):
        await function(sample)
    assert sample.metadata == {"closed": True}


async def test_a_worker_process_finds_slimes_names_too(make: Make) -> None:
    function = make(
        "from slime.utils.types import Sample\n"
        "def reward_func(args, sample):\n"
        " from slime.rollout.rm_hub.f1 import f1_score\n"
        " assert isinstance(sample, Sample)\n return f1_score('b', 'b')[0]"
    )
    assert await function(Sample()) == 1.0
