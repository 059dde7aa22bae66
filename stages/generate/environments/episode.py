"""--environment-path: every sample is an episode of a text environment of the user's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from numbers import Real
from typing import Any

from configs.hooks import HOOKS, load_hook
from pipeline.core.deadline import Deadline
from pipeline.core.errors import ConfigError, GenerateError, UserFunctionError
from pipeline.core.threads import in_thread
from pipeline.core.types import Sample
from pipeline.core.user_errors import told
from stages.generate.environments.protocol import Environment, Observation
from stages.generate.environments.talk import Talk, open_talk

HOOK = HOOKS["environment_path"]
NAMED = "environment"  # in a sample's metadata: which class of the file is its environment


class Episodes:
    """Implements `MakesSamples`: plays one episode with every sample."""

    def __init__(self, spec: str) -> None:
        """Raises ConfigError where `spec` names no class."""
        self._spec = HOOK.named(spec)
        self._classes: dict[Any, Callable[..., Environment]] = {None: load_hook(HOOK.field, spec)}

    async def one(
        self, args: Any, sample: Sample, params: Mapping[str, Any], evaluation: bool
    ) -> list[Sample]:
        make = self._class(sample.metadata.get(NAMED))
        table = Table(await in_thread(lambda: make(args)), args.environment_timeout_seconds)
        try:
            return await _play(table, args, sample, params)
        finally:
            await table.close()

    def _class(self, name: Any) -> Callable[..., Environment]:
        if name not in self._classes:
            self._classes[name] = self._beside(name)
        return self._classes[name]

    def _beside(self, name: Any) -> Callable[..., Environment]:
        """A class of the same file: a data file names no other code to run."""
        mark = ":" if ":" in self._spec else "."
        problem = f"metadata {NAMED} {name!r:.80}: expected the name of a class with reset and step"
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise GenerateError(problem)
        spec = f"{self._spec.rpartition(mark)[0]}{mark}{name}"
        try:
            found = load_hook(HOOK.field, spec)
        except ConfigError as error:
            raise GenerateError(f"{problem}: {error}") from error
        kind = inspect.unwrap(found)
        if not isinstance(kind, type) or not all(hasattr(kind, m) for m in HOOK.methods):
            raise GenerateError(f"{problem}; {spec} is none")
        return found


class Table:
    """One environment, called with a deadline, and off the event loop where it may block."""

    def __init__(self, environment: Environment, timeout_seconds: float | None) -> None:
        self._environment = environment
        self._deadline = Deadline(timeout_seconds, "--environment-timeout-seconds")

    async def reset(self, sample: Sample) -> Observation | None:
        """Raises UserFunctionError where it is no observation, or what it raised."""
        seen = await self._called("reset", sample)
        return seen if seen is None else _observation(seen, "reset")

    async def step(self, action: str) -> tuple[Observation, float | None, bool]:
        """As `reset`."""
        answer = await self._called("step", action)
        if not isinstance(answer, tuple | list) or len(answer) != 3:
            raise UserFunctionError(
                f"{HOOK.flag}: step returned {answer!r:.80}; expected (observation, reward, done)"
            )
        seen, reward, done = answer
        is_number = isinstance(reward, Real) and math.isfinite(reward)
        if reward is not None and not is_number:
            raise UserFunctionError(
                f"{HOOK.flag}: step returned the reward {reward!r:.80}; expected a finite number,"
                " or None"
            )
        score = None if reward is None else float(reward)
        return ("" if done else _observation(seen, "step")), score, bool(done)

    async def close(self) -> None:
        """What it raises is in the log: the episode is over, and keeps what it has."""
        if hasattr(self._environment, "close"):
            try:
                await self._called("close")
            except Exception:
                return

    async def _called(self, name: str, *given: Any) -> Any:
        return await self._deadline.within(self._inside(name, *given))

    async def _inside(self, name: str, *given: Any) -> Any:
        """Inside of its deadline's task, out of which no SystemExit may come."""
        method = getattr(self._environment, name)
        with told(method, HOOK.flag):
            if inspect.iscoroutinefunction(inspect.unwrap(method)):
                return await method(*given)
            answer = await in_thread(lambda: method(*given))
            return await answer if isinstance(answer, Awaitable) else answer


async def _play(table: Table, args: Any, sample: Sample, params: Mapping[str, Any]) -> list[Sample]:
    seen = await table.reset(sample)
    if seen is not None:
        sample.prompt = seen
    total: float | None = None
    async with open_talk(args, sample, params) as talk:
        while not talk.done:
            seen, reward, done = await table.step(await talk.act())
            if reward is not None:
                total = (total or 0.0) + reward
            if done or not _told(talk, seen):
                break
    for part in talk.samples:
        part.reward = total
    return talk.samples


def _told(talk: Talk, seen: Observation) -> bool:
    return talk.observe([{"role": "user", "content": seen}] if isinstance(seen, str) else seen)


def _observation(seen: Any, name: str) -> Observation:
    is_chat = isinstance(seen, list) and all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in seen
    )
    if not isinstance(seen, str) and not (is_chat and seen):
        raise UserFunctionError(
            f"{HOOK.flag}: {name} returned the observation {seen!r:.80}; expected text, or a list"
            " of messages {role, content}"
        )
    return seen
