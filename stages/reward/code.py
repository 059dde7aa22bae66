"""`--rm-type code`: the response's program is run in a sandbox, against the row's unit tests."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from decimal import Decimal, InvalidOperation
from typing import Any

from configs.schema.reward import RewardConfig
from pipeline.core.errors import RewardError
from pipeline.core.types import Sample
from pipeline.core.unit_tests import CallTest, StdinTest, UnitTest, unit_tests
from sandbox.limits import Limits
from sandbox.pool import Sandbox
from sandbox.result import SandboxError, SandboxUnavailable

SHARE = "share"  # the --reward-key that pays for every test that passes
_LEAST_SECONDS = 0.1  # a test's, however much of the sample's are used up
_BLOCK = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")


class CodeReward:
    """{"score": 1.0 when all tests pass, else 0.0; "passed": how many did; "tests": how many there
    are}. Without a program in a fenced block (the last one, after the thoughts) none passes.

    The first test that fails is the last that runs; unless --reward-key is "share": then all run,
    and "share" is passed / tests. All tests of a sample together have --reward-timeout-seconds;
    what did not run in that time has not passed. What a test expects never enters the sandbox,
    except where it is code itself: asserts run behind the program, which can cheat them."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._sandbox: Sandbox | None = None
        self._starts = asyncio.Lock()

    async def __call__(self, sample: Sample) -> dict[str, float]:
        """Raises RewardError where the sandbox failed, or the tests cannot be read."""
        try:
            tests = unit_tests(sample.label, sample.metadata)
        except ValueError as error:
            raise RewardError(str(error)) from error
        code = last_program(sample.response)
        try:
            passed = 0 if code is None else await self._passed(code, tests)
        except (SandboxError, SandboxUnavailable) as error:
            raise RewardError(f"rm_type code: {error}") from error
        score = {"score": float(passed == len(tests)), "passed": passed, "tests": len(tests)}
        return score | ({SHARE: passed / len(tests)} if self._runs_all else {})

    async def close(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.close()

    @property
    def _runs_all(self) -> bool:
        return self._config.reward_key == SHARE

    async def _passed(self, code: str, tests: list[UnitTest]) -> int:
        sandbox = await self._started()
        passed, left = 0, self._config.reward_timeout_seconds
        for test in tests:
            passes, seconds = await run_test(sandbox, code, test, max(left, _LEAST_SECONDS))
            passed, left = passed + passes, left - seconds
            if left <= 0 or not (passes or self._runs_all):
                break
        return passed

    async def _started(self) -> Sandbox:
        async with self._starts:
            if self._sandbox is None:
                config = self._config
                limits = Limits(
                    seconds=config.sandbox_seconds, memory_bytes=config.sandbox_memory_bytes
                )
                sandbox = Sandbox(limits, num_workers=config.reward_num_workers)
                self._sandbox = await sandbox.__aenter__()
            return self._sandbox


def last_program(response: str) -> str | None:
    """The last fenced block of Python after the thoughts; None without one, or where the last block
    does not end."""
    solution = response.rpartition("</think>")[2]
    blocks = [text for kind, text in _BLOCK.findall(solution) if kind.lower() in _PYTHON]
    return blocks[-1] if blocks else None


async def run_test(
    sandbox: Sandbox, code: str, test: UnitTest, seconds: float
) -> tuple[bool, float]:
    """Whether the program passes, and how many seconds it took."""
    if isinstance(test, StdinTest):
        result = await sandbox.run(code, test.stdin, seconds=seconds)
        return result.ok and same_output(result.stdout, test.stdout), result.seconds
    # said at the end, to be told from what the program prints and from one that exits before
    end = f"<{secrets.token_hex(16)}>"
    stdin = ""
    if isinstance(test, CallTest):
        stdin = json.dumps(test.arguments)
        program = f"{code}\n\n{_CALL.format(function=test.function, end=end)}"
    else:
        program = f"{code}\n\n{test.code}\n\nprint({end!r})"
    # not __main__: the program's own main is not what is tested
    result = await sandbox.run(program, stdin, seconds=seconds, name="solution")
    _, reached, answer = result.stdout.rpartition(end)
    passes = bool(reached) and result.ok
    if isinstance(test, CallTest):
        passes = passes and _returned(answer, test.expected)
    return passes, result.seconds


_CALL = """\
def _answer():
    import json, sys
    found = globals().get({function!r}) or getattr(globals()["Solution"](), {function!r})
    answer = found(*json.loads(sys.stdin.read()))
    print({end!r} + json.dumps(answer, default=list))
_answer()"""


def _returned(answer: str, expected: Any) -> bool:
    """APPS and TACO put what a function returns into a list of one."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    expected = json.loads(json.dumps(expected))
    return bool(value == expected or [value] == expected)


def same_output(said: str, expected: str) -> bool:
    """The same lines but for white space around them and empty ones at the ends; or the same words
    in the same lines, where numbers are the same by value (1.0 and 1)."""
    ours, theirs = ([line.strip() for line in t.strip().splitlines()] for t in (said, expected))
    if ours == theirs:
        return True
    return len(ours) == len(theirs) and all(map(_same_words, ours, theirs))


def _same_words(ours: str, theirs: str) -> bool:
    a, b = ours.split(), theirs.split()
    return len(a) == len(b) and all(x == y or _same_number(x, y) for x, y in zip(a, b, strict=True))


def _same_number(ours: str, theirs: str) -> bool:
    try:
        return Decimal(ours) == Decimal(theirs)
    except InvalidOperation:
        return False
