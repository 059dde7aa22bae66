"""Environments of the package verifiers, by their names: loaded once in a process."""

from __future__ import annotations

import ast
import json
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from pipeline.core.errors import DataError

PREFIX = "verifiers:"
KEY = "verifiers"  # in a sample's metadata: {"spec": ..., "row": ...}


@lru_cache(maxsize=64)
def load_environment(spec: str) -> Any:
    """`verifiers:NAME?argument=value&...`: what its `load_environment(argument=value, ...)` makes.
    A value is read as Python's literal (5, True, [1,2]) where it is one, else as text.

    Raises DataError where there is none, or where it cannot be trained on one sample at a time."""
    try:
        import verifiers

        load = verifiers.load_environment
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"{spec}: no package verifiers with load_environment is installed ({error}); expected"
            " verifiers 0.1.14 to 0.3"
        ) from error
    name, _, query = spec.removeprefix(PREFIX).partition("?")
    arguments = dict(_argument(spec, part) for part in query.split("&") if part)
    try:
        environment = load(name, **arguments)
    except Exception as error:  # an environment's own code
        raise DataError(f"{spec} cannot be loaded: {type(error).__name__}: {error}") from error
    if getattr(environment, "requires_group_rollouts", False):
        raise DataError(
            f"{spec}: its rubric compares the rollouts of a group, and here every sample is scored"
            " by itself"
        )
    return environment


def row_of(environment: Any, row: dict[str, Any]) -> dict[str, Any]:
    """A row of its data set, as JSON can say it. Raises DataError where JSON cannot."""
    try:
        return dict(json.loads(json.dumps(row)))
    except (TypeError, ValueError) as error:
        raise DataError(f"a row of {environment.env_id} cannot be kept: {error}") from error


def _argument(spec: str, part: str) -> tuple[str, Any]:
    key, equals, text = (unquote(p) for p in part.partition("="))
    if not equals:
        raise DataError(f"{spec}: {part!r} has no value; expected argument=value&argument=value")
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return key, text
