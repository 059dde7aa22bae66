"""Evaluation by a function of the user's (--eval-function-path)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pipeline.core.errors import DataError
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import EvalResult, Sample
from stages.evaluate.summary import NO_VERSION, mean_of


class FunctionEvaluator:
    """Evaluates with a function of the user's (--eval-function-path)."""

    def __init__(
        self,
        evaluate: Callable[[int], Awaitable[Any]],
        flag: str,
        *,
        time: TimeSource | None = None,
        log: Callable[[int, dict[str, dict[str, Any]]], Any] | None = None,
    ) -> None:
        self._evaluate, self._flag = evaluate, flag
        self._time, self._log = time or MonotonicTime(), log

    async def evaluate(self, rollout_id: int) -> list[EvalResult]:
        """Raises DataError where the answer is no dict of data sets with rewards."""
        started = self._time.now()
        answer = await self._evaluate(rollout_id)
        data = getattr(answer, "data", answer)
        if not isinstance(data, dict) or not all(
            isinstance(seen, dict) and "rewards" in seen for seen in data.values()
        ):
            raise DataError(
                f"{self._flag}: the function returned {answer!r:.80}; expected a dict of data sets,"
                ' each {"rewards": [...]}, with "samples" or "truncated"'
            )
        if self._log is not None:
            self._log(rollout_id, data)
        seconds = self._time.now() - started
        return [self._result(name, rollout_id, seen, seconds) for name, seen in data.items()]

    def _result(
        self, name: str, rollout_id: int, seen: dict[str, Any], seconds: float
    ) -> EvalResult:
        rewards = [float(reward) for reward in seen["rewards"]]
        samples: Sequence[Sample] = seen.get("samples") or ()
        versions = [span[0] for s in samples for span in s.weight_versions if len(span) == 3]
        return EvalResult(
            name=name,
            rollout_id=rollout_id,
            policy_version_min=min(versions, default=NO_VERSION),
            policy_version_max=max(versions, default=NO_VERSION),
            reward_mean=mean_of(rewards),
            num_samples=len(rewards),
            num_failed=0,
            response_length_mean=mean_of([s.response_length for s in samples]),
            truncated_fraction=mean_of([bool(t) for t in seen.get("truncated") or ()]),
            seconds=seconds,
            error=None if rewards else "the function gave no reward",
        )
