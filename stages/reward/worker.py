"""A user's plain reward function, as a worker process runs it: in its main thread, where
math_verify's own deadlines work, and where a hanging one can be killed.

The function sees copies of the samples; what it changes in them goes back with the reward. There it
goes by pickle, for the driver is trusted, and what it sends may be images, arrays and a user's own
objects. Back it comes as JSON: whatever a user's code (and the answers that it runs) has made
becomes data in the driver, and nothing that could run there. That is a bound for what code returns,
no prison for it: the process has its user's rights."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import pickle
from collections.abc import Awaitable
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Any

from configs.hooks import HOOKS, load_hook
from pipeline.core.errors import ConfigError
from pipeline.core.tagged_json import from_jsonable, misfit, to_jsonable
from pipeline.core.types import Sample
from pipeline.core.user_errors import ANY_FAILURE, in_words, note_place
from stages.reward.judgement import check_sayable, plain

HOOK = "custom_rm_path"
Changes = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of one call."""

    reward: Any = None
    changes: list[Changes] = field(default_factory=list)  # of each sample: attribute -> new value
    error: str | None = None  # what the function raised, and where
    traceback: str = ""
    awaitable: bool = False  # it returned one: only an event loop can run it
    unfit: str | None = None  # why it cannot be called in this process

    def to_json(self) -> str:
        """What JSON cannot carry is the error then, by its name."""
        try:
            return json.dumps(
                {f.name: to_jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}
            )
        except (TypeError, ValueError, RecursionError) as error:  # no type, no number, no end
            return Reply(error=f"{type(error).__name__}: {self._misfit() or error}").to_json()

    @classmethod
    def from_json(cls, text: str) -> Reply:
        return cls(**{name: from_jsonable(value) for name, value in json.loads(text).items()})

    def _misfit(self) -> str | None:
        named = [("reward", self.reward)]
        named += [(f"sample.{name}", v) for each in self.changes for name, v in each.items()]
        found = next(filter(None, (misfit(value, name) for name, value in named)), None)
        return found and f"{found}: expected what JSON can say"


def load(spec: str) -> None:
    """Import the function ahead of the first call, whose deadline an import would eat. Where that
    fails, the call says so."""
    with contextlib.suppress(ConfigError):
        load_hook(HOOK, spec)


def call(spec: str, request: bytes) -> str:
    """`request` is (args, sample or samples), pickled by the driver: by plain pickle, for a queue
    would hand tensors over as open files. The answer is a Reply."""
    return _reply(spec, request).to_json()


def _reply(spec: str, request: bytes) -> Reply:
    try:
        function = load_hook(HOOK, spec)
        args, subject = pickle.loads(request)
    except Exception as error:  # user code, and classes that only the driver has
        return Reply(unfit=f"{type(error).__name__}: {error}")
    samples: list[Sample] = subject if isinstance(subject, list) else [subject]
    before = [_pickled(s) for s in samples]
    try:
        result = function(args, subject)
        if isinstance(result, Awaitable):
            if inspect.iscoroutine(result):
                result.close()  # nothing of it has run
            return Reply(awaitable=True)
        changes = [_changes(old, new) for old, new in zip(before, samples, strict=True)]
        reward = plain(result)
    except ANY_FAILURE as error:  # whatever user code raises is data
        note_place(error, function, HOOKS[HOOK].flag)
        return Reply(error=in_words(error), traceback="".join(format_exception(error)))
    try:
        check_sayable(reward)
    except Exception as error:  # a RewardError, or what the objects' own code raises
        return Reply(error=in_words(error))
    return Reply(reward=reward, changes=changes)


def _pickled(sample: Sample) -> dict[str, bytes]:
    return {name: pickle.dumps(value) for name, value in vars(sample).items()}


def _changes(before: dict[str, bytes], sample: Sample) -> Changes:
    after = _pickled(sample)
    return {name: getattr(sample, name) for name in after if after[name] != before.get(name)}
