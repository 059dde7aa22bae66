"""Custom generate functions in slime's signatures, told apart by their parameters' names."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from configs.hook import generate_form
from configs.hooks import HOOKS
from pipeline.core.errors import ConfigError, GenerateError
from pipeline.core.threads import in_thread
from pipeline.core.types import Sample
from pipeline.core.user_errors import told

HOOK = HOOKS["custom_generate_function_path"]
SIGNATURES = HOOK.expected


class MakesSamples(Protocol):
    async def one(
        self, args: Any, sample: Sample, params: Mapping[str, Any], evaluation: bool
    ) -> list[Sample]:
        """The samples made of one: one or, with fan-out, several. Raises for one that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomGenerate:
    """One user function and how to call it."""

    name: str
    function: Callable[..., Any]
    is_async: bool  # else it runs in a thread, and may block it
    takes_list: bool
    takes_evaluation: bool

    async def one(
        self, args: Any, sample: Sample, params: Mapping[str, Any], evaluation: bool
    ) -> list[Sample]:
        """The samples that the function made of one sample: one or, with fan-out, several."""
        if self.takes_list:
            return await self.group(args, [sample], evaluation)
        extra = {"evaluation": evaluation} if self.takes_evaluation else {}
        return self._samples(await self._call(args, sample, dict(params), **extra))

    async def group(self, args: Any, samples: Sequence[Sample], evaluation: bool) -> list[Sample]:
        """The list form: takes a whole group and returns its samples."""
        extra = {"evaluation": evaluation} if self.takes_evaluation else {}
        return self._samples(await self._call(args, list(samples), **extra))

    async def _call(self, args: Any, subject: Any, *rest: Any, **named: Any) -> Any:
        with told(self.function, HOOK.flag):
            if self.is_async:
                return await self.function(args, subject, *rest, **named)
            own = copy.deepcopy(subject)  # one that is late goes on, and writes into nobody's
            answer = await in_thread(lambda: self.function(args, own, *rest, **named))
            return await answer if isinstance(answer, Awaitable) else answer

    def _samples(self, returned: Any) -> list[Sample]:
        samples = [returned] if isinstance(returned, Sample) else returned
        if (
            not isinstance(samples, list | tuple)
            or not samples
            or not all(isinstance(s, Sample) for s in samples)
        ):
            raise GenerateError(
                f"{self.name} returned {_describe(returned)}; expected a Sample or a non-empty list"
                f" of Samples{_of_another(samples)}"
            )
        return list(cast(Sequence[Sample], samples))


def wrap(function: Callable[..., Any], spec: str) -> CustomGenerate:
    """Tells the signature forms apart. Raises ConfigError when `function` has none of them."""
    target = function if inspect.isroutine(function) else type(function).__call__
    signature = inspect.signature(function)
    form = generate_form(signature)
    if form is None:
        raise ConfigError(
            f"{spec}: {getattr(function, '__name__', function)}{signature} fits no known"
            f" signature; write {SIGNATURES}"
        )
    name = f"{spec} ({getattr(function, '__name__', 'function')})"
    return CustomGenerate(
        name=name,
        function=function,
        is_async=inspect.iscoroutinefunction(inspect.unwrap(target)),
        takes_list=form.takes_list,
        takes_evaluation=form.takes_evaluation,
    )


def _of_another(samples: Any) -> str:
    """In words, where they are another project's: it is installed, so that its name is not ours."""
    kinds = {type(s) for s in (samples if isinstance(samples, list | tuple) else [samples])}
    other = [k for k in kinds if k.__name__ == "Sample" and not issubclass(k, Sample)]
    return "".join(
        f", not {k.__module__}.Sample: write `from slipstream import Sample`" for k in other
    )


def _describe(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:80]}{'...' if len(text) > 80 else ''}"
