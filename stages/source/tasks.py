"""Prompts from reasoning-gym: `reasoning_gym:TASK?param=value&...`.

With `size` the task is a fixed set, shuffled anew every epoch; without it the task never ends:
every "epoch" is a chunk generated from a seed of its own. A handful of reasoning-gym tasks iterate
over sets of strings and so depend on PYTHONHASHSEED as well; set it where such a task must be the
same after a restart."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.tagged_json import to_jsonable
from stages.source.rows import Row

PREFIX = "reasoning_gym:"
# rows of one chunk of an endless task: some tasks generate all of them when they are created
CHUNK = 512


class TaskRows:
    """Procedural prompts. `label` is the task's answer; `metadata["reasoning_gym"]` is what its
    scorer needs: {"task": name, "params": {...}, "entry": {question, answer, metadata}}, in
    pipeline.core.tagged_json's form."""

    num_bad_rows = 0

    def __init__(self, spec: str, *, seed: int) -> None:
        """`seed` is used unless the spec has one.

        Raises DataError for an unknown task, or a parameter that the task refuses."""
        self.name, self._params = parse_task(spec)
        self.endless = "size" not in self._params
        self._seed = int(self._params.pop("seed", seed) or 0)
        self._size = int(self._params.pop("size", CHUNK))
        if self._size < 1:
            raise DataError(f"{spec!r} holds no prompts: size={self._size}")
        self._stored_params = to_jsonable(self._params)
        self._epoch: int | None = None
        self._dataset: Any = None
        self.row(0, 0)  # a task that refuses its parameters only when it generates says so now

    def __len__(self) -> int:
        return self._size

    def row(self, epoch: int, index: int) -> Row:
        entry = self._chunk(epoch if self.endless else 0)[index]
        where = f"{self.name} #{index}" + (f" of chunk {epoch}" if self.endless else "")
        try:
            kept = to_jsonable({key: entry[key] for key in ("question", "answer", "metadata")})
        except TypeError as error:
            raise DataError(f"{where}: the task's metadata cannot be kept: {error}") from error
        return Row(
            where=where,
            prompt=kept["question"],
            label=kept["answer"],
            metadata={
                "reasoning_gym": {"task": self.name, "params": self._stored_params, "entry": kept}
            },
        )

    def fingerprint(self) -> str:
        size = "endless" if self.endless else self._size
        return f"{self.name}?{sorted(self._params.items())}&seed={self._seed}&size={size}"

    def _chunk(self, epoch: int) -> Any:
        if epoch != self._epoch:
            # Seeds of neighbouring chunks must be far apart: reasoning-gym's rows are seeded by
            # seed + index.
            seed = (
                int(np.random.SeedSequence([self._seed, epoch]).generate_state(1)[0])
                if self.endless
                else self._seed
            )
            self._dataset, self._epoch = (
                create_task(self.name, {**self._params, "seed": seed, "size": self._size}),
                epoch,
            )
        return self._dataset


def parse_task(spec: str) -> tuple[str, dict[str, Any]]:
    """`reasoning_gym:TASK?a=1&b=x` -> (TASK, {a: 1, b: "x"}), values as the task's own config
    declares them."""
    from reasoning_gym.factory import DATASETS

    name, _, query = spec.removeprefix(PREFIX).partition("?")
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(close)}?"
            if close
            else f"it has {', '.join(sorted(DATASETS))}"
        )
        raise DataError(f"{spec!r}: reasoning-gym has no task {name!r}; {hint}")
    declared = _declared(DATASETS[name][1])
    params: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        # not parse_qsl: it would turn + into a space
        key, equals, value = (unquote(p) for p in part.partition("="))
        if not equals:
            raise DataError(f"{spec!r}: {part!r} has no value; expected param=value&param=value")
        if key not in declared:
            close = difflib.get_close_matches(key, declared, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(declared)}"
            raise DataError(f"{spec!r}: task {name} has no parameter {key!r}; {hint}")
        params[key] = _convert(f"{spec!r}: {key}", value, declared[key])
    return name, params


def create_task(name: str, params: dict[str, Any]) -> Any:
    """The reasoning-gym dataset.

    Raises DataError with the task's own words when it refuses its parameters.
    """
    from reasoning_gym.factory import create_dataset

    try:
        return create_dataset(name, **params)
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in params.items())
        raise DataError(
            f"reasoning-gym task {name} refuses its parameters ({given}):"
            f" {error or 'no reason given'}"
        ) from error


def _declared(config: type) -> dict[str, Any]:
    """The type of every parameter, by name."""
    hints = typing.get_type_hints(config)
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(config)}


def _convert(what: str, text: str, kind: Any) -> Any:
    """The text as a value of `kind`. Raises DataError saying what was expected."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return (
            None
            if text.lower() == "none"
            else _convert(what, text, next(o for o in options if o is not type(None)))
        )
    if origin is typing.Literal:
        if text not in options:
            raise DataError(f"{what}={text} is none of {', '.join(map(repr, options))}")
        return text
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise DataError(f"{what}={text} is not true or false")
        return text.lower() in ("true", "1")
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise DataError(
                f"{what}={text} is not {'a whole number' if kind is int else 'a number'}"
            ) from error
    if (origin or kind) in (list, tuple, Sequence):
        return _convert_list(what, text, tuple if (origin or kind) is tuple else list, options)
    raise DataError(
        f"{what} takes a {getattr(kind, '__name__', kind)}, which cannot be written in a spec"
    )


def _convert_list(what: str, text: str, kind: type, options: Sequence[Any]) -> Any:
    """The list that `["+","-"]`, `(1, 2)`, or bare `+,-` (for lists of text) writes."""
    if text[:1] in ("[", "("):
        try:
            return kind(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError) as error:
            raise DataError(f"{what}={text} is not a list; expected e.g. [1,2]") from error
    inner = options[0] if options else str
    return kind(_convert(what, item, inner) for item in text.split(","))
