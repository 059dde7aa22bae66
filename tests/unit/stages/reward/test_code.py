"""rm_type code: a response's program against a row's tests, in the real sandbox."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from configs.schema import RewardConfig
from pipeline.core.errors import DataError, RewardError
from pipeline.core.types import Sample, Status
from stages.reward import RewardStage, build_reward
from stages.reward.code import CodeReward, last_program, same_output
from stages.source.labels import scored_by
from stages.source.rows import Row
from tests.unit.sandbox.conftest import needs_namespaces

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADD = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
READS = "a, b = map(int, input().split())"
SUM = {"fn_name": "f", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]}
CHECK = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[RewardStage]:
    needs_namespaces()
    config = RewardConfig(rm_type="code", reward_num_workers=1, sandbox_seconds=5.0)
    made = build_reward(config, SimpleNamespace())
    yield made
    await made.close()


def sample(program: str, label: Any, **metadata: Any) -> Sample:
    return Sample(
        index=0,
        prompt="p",
        response=f"Thus:\n```python\n{program}\n```\n",
        label=label,
        metadata=metadata,
        status=Status.COMPLETED,
    )


@pytest.mark.parametrize(
    ("program", "label", "metadata", "score", "passed"),
    [
        (f"{READS}\nprint(a + b)", ADD, {}, 1.0, 2),
        (f"{READS}\nif __name__ == '__main__': print(float(a + b))", ADD, {}, 1.0, 2),
        (f"{READS}\nprint(3)", ADD, {}, 0.0, 1),
        (f"{READS}\nprint(a + b)\nexit(1)", ADD, {}, 0.0, 0),
        ("print(3", ADD, {}, 0.0, 0),
        ("def f(a, b): return a + b", SUM, {}, 1.0, 2),
        ("class Solution:\n    def f(self, a, b): return a + b", SUM, {}, 1.0, 2),
        ("def f(a, b):\n    print('7')\n    return 3", SUM, {}, 0.0, 1),
        ("def g(a, b): return a + b", SUM, {}, 0.0, 0),
        ("def f(a): return (a, [a])", {**SUM, "inputs": [[1]], "outputs": [[1, [1]]]}, {}, 1.0, 1),
        ("def f(a): return 5", {**SUM, "inputs": [[1]], "outputs": [[5]]}, {}, 1.0, 1),
        ("def f(x): return x + 1", CHECK, {"entry_point": "f"}, 1.0, 1),
        ("def f(x): return 2", CHECK, {"entry_point": "f"}, 0.0, 0),
        ("def f(x): return x", ["assert f(1) == 1", "assert f(2) == 1"], {}, 0.0, 1),
        # ways to leave before a test was judged
        ("import sys; sys.exit(0)", ["assert f(1) == 2"], {}, 0.0, 0),
        ("import os; os._exit(0)", SUM, {}, 0.0, 0),
        ("import atexit, os\natexit.register(os._exit, 0)", ["assert f(1) == 2"], {}, 0.0, 0),
        ("def f(x): raise SystemExit(0)", CHECK, {"entry_point": "f"}, 0.0, 0),
        # its own main is not what is tested
        (
            "def f(x): return x + 1\nif __name__ == '__main__': f(input())",
            ["assert f(1)"],
            {},
            1,
            1,
        ),
    ],
)
async def test_scores(
    stage: RewardStage,
    program: str,
    label: Any,
    metadata: dict[str, Any],
    score: float,
    passed: int,
) -> None:
    one = sample(program, label, **metadata)
    await stage([one])
    assert isinstance(one.reward, dict), one.error
    assert (one.reward["score"], one.reward["passed"]) == (score, passed)


async def test_a_response_without_a_program_passes_nothing(stage: RewardStage) -> None:
    one = sample("", ADD)
    one.response = "The sum of a and b."
    await stage([one])
    assert one.reward == {"score": 0.0, "passed": 0.0, "tests": 2.0}


async def test_a_share_is_paid_for_by_reward_key() -> None:
    needs_namespaces()
    config = RewardConfig(reward_key="share", reward_num_workers=1)
    reward = CodeReward(config)
    label = ["assert f(1) == 2", "assert f(1) == 1", "assert f(2) == 2"]
    assert await reward(sample("def f(x): return x", label)) == {
        "score": 0.0,
        "passed": 2,
        "tests": 3,
        "share": pytest.approx(2 / 3),
    }
    await reward.close()


async def test_all_tests_together_have_the_rewards_deadline() -> None:
    needs_namespaces()
    reward = CodeReward(RewardConfig(reward_timeout_seconds=0.3, reward_num_workers=1))
    label = {"inputs": ["1"] * 1000, "outputs": ["1"] * 1000}
    scored = await reward(sample("import time\ntime.sleep(0.04)\nprint(1)", label))
    assert scored["score"] == 0.0 and 0 < scored["passed"] < 10
    await reward.close()


async def test_tests_that_cannot_be_read_fail_the_sample_and_the_row(stage: RewardStage) -> None:
    one = sample("print(1)", "42")
    await stage([one])
    assert one.status is Status.FAILED and "the tests are" in (one.error or "")
    judge = scored_by(RewardConfig(rm_type="code"))
    with pytest.raises(DataError, match=r"x.jsonl:3.*the tests are"):
        judge(Row(prompt="p", label="42", where="x.jsonl:3"))
    judge(Row(prompt="p", label=ADD, where="x.jsonl:3"))


async def test_a_sandbox_that_fails_is_no_judgement() -> None:
    needs_namespaces()
    reward = CodeReward(RewardConfig(reward_num_workers=1))
    await reward(sample("print(1)", ADD))
    await reward.close()
    with pytest.raises(RewardError, match="closed"):
        await reward(sample("print(1)", ADD))


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\n1\n```\nor\n```python\n2\n```", "2\n"),
        ("```py\n1\n```\n```cpp\n2\n```", "1\n"),
        ("```\n1\n```", "1\n"),
        ("```python\nprint('```')\n```", "print('```')\n"),
        ("```python\n1\n```\n```python\n2", "1\n"),
        ("<think>\n```python\n1\n```\n</think>\nNone.", None),
        ("print(1)", None),
    ],
)
async def test_the_last_program_counts(response: str, program: str | None) -> None:
    assert last_program(response) == program


@pytest.mark.parametrize(
    ("said", "expected", "same"),
    [
        ("1\n2\n", "1 \n2", True),
        ("1.0 2", "1 2.00", True),
        ("1e2", "100", True),
        ("NaN", "NaN", True),
        ("1\n2", "1 2", False),
        ("a", "A", False),
        ("", "1", False),
        ("0.1000001", "0.1", False),
    ],
)
async def test_outputs_are_compared_line_by_line(said: str, expected: str, same: bool) -> None:
    assert same_output(said, expected) is same
