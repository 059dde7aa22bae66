"""Prompts of an environment of the package verifiers: `verifiers:NAME?argument=value&...`."""

from __future__ import annotations

import hashlib
from typing import Any

from pipeline.core.errors import DataError
from pipeline.core.verifiers_env import KEY, PREFIX, load_environment, row_of
from stages.source.rows import Row

GENERATE = "stages.generate.environments.verifiers_rollout.generate"


class VerifiersRows:
    """Its data set for training, or the one for evaluation. Every row is made by the environment's
    own rollout, which has its rubric's reward."""

    num_bad_rows, endless = 0, False

    def __init__(self, spec: str, *, held_out: bool) -> None:
        """`held_out`: of evaluation (where it has no such set, of training). Raises DataError where
        it has no rows."""
        self._spec = spec
        self.name = spec.removeprefix(PREFIX)
        self._environment = load_environment(spec)
        try:
            get = "get_eval_dataset" if held_out else "get_dataset"
            self._rows: Any = getattr(self._environment, get)()
        except Exception as error:  # an environment's own code
            raise DataError(f"{spec}: its data: {type(error).__name__}: {error}") from error
        if not len(self._rows):
            raise DataError(f"{spec} holds no prompts")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, epoch: int, index: int) -> Row:
        kept = row_of(self._environment, self._rows[index])
        return Row(
            where=f"{self.name} #{index}",
            prompt=kept["prompt"],
            label=kept.get("answer"),
            metadata={KEY: {"spec": self._spec, "row": kept}},
            generate_function_path=GENERATE,
        )

    def fingerprint(self) -> str:
        size = len(self._rows)
        some = [self._rows[place] for place in sorted({0, size // 2, size - 1})]
        return (
            f"{self._spec}#{size}#{hashlib.blake2b(repr(some).encode(), digest_size=8).hexdigest()}"
        )
