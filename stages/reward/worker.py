"""A user's plain reward function, as a worker process runs it: in its main thread, where
math_verify's own deadlines work, and where a hanging one can be killed.

The function sees copies of the samples; what it changes in them goes back with the reward."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import pickle
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from configs.hooks import load_hook
from pipeline.core.errors import ConfigError
from pipeline.core.types import Sample
from pipeline.core.user_errors import in_words, note_place
from stages.reward.judgement import plain

HOOK = "custom_rm_path"
Changes = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What became of one call."""

    reward: Any = None
    changes: list[Changes] = field(default_factory=list)  # of each sample: field -> new value
    error: str | None = None  # what the function raised, and where
    awaitable: bool = False  # it returned one: only an event loop can run it
    unfit: str | None = None  # why it cannot be called in this process


def load(spec: str) -> None:
    """Import the function ahead of the first call, whose deadline an import would eat. Where that
    fails, the call says so."""
    with contextlib.suppress(ConfigError):
        load_hook(HOOK, spec)


def call(spec: str, request: bytes) -> bytes:
    """`request` is (args, sample or samples), the answer a Reply, both pickled here: by plain
    pickle, for a queue would hand tensors over as open files."""
    try:
        function = load_hook(HOOK, spec)
        args, subject = pickle.loads(request)
    except Exception as error:  # user code, and classes that only the driver has
        return pickle.dumps(Reply(unfit=f"{type(error).__name__}: {error}"))
    samples: list[Sample] = subject if isinstance(subject, list) else [subject]
    before = [_pickled(s) for s in samples]
    try:
        result = function(args, subject)
        if isinstance(result, Awaitable):
            if inspect.iscoroutine(result):
                result.close()  # nothing of it has run
            return pickle.dumps(Reply(awaitable=True))
        changes = [_changes(old, new) for old, new in zip(before, samples, strict=True)]
        return pickle.dumps(Reply(reward=plain(result), changes=changes))
    except (Exception, SystemExit) as error:  # whatever user code raises is data
        note_place(error, function)
        return pickle.dumps(Reply(error=in_words(error)))


def _pickled(sample: Sample) -> dict[str, bytes]:
    return {f.name: pickle.dumps(getattr(sample, f.name)) for f in dataclasses.fields(sample)}


def _changes(before: dict[str, bytes], sample: Sample) -> Changes:
    after = _pickled(sample)
    return {name: getattr(sample, name) for name in after if after[name] != before[name]}
