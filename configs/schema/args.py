"""What users' functions get as `args`: everything in one flat namespace."""

from __future__ import annotations

import copy
import difflib
from types import SimpleNamespace
from typing import Any

# Parts of the run, not settings: a copy of `args` has the same ones.
LIVE_PARTS = ("engine_client", "tokenizer", "time", "vision")


class Args(SimpleNamespace):
    """A namespace whose copies share the run's live parts, and that says what is not there."""

    def __getattr__(self, name: str) -> Any:  # asked for what is not there only
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(absence(name, vars(self)), name=name, obj=None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Args:
        shared = {name: vars(self)[name] for name in LIVE_PARTS if name in vars(self)}
        memo.update({id(part): part for part in shared.values()})
        return type(self)(**copy.deepcopy(vars(self), memo))


def absence(name: str, known: Any) -> str:
    """Why `args` has no `name`, and what to do."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean args.{close[0]}? " if close else ""
    return (
        f"args.{name} is no flag of Slipstream or slime, nor one of Megatron's or SGLang's"
        f" (args.sglang_...) that is given; {hint}Of one that need not be given: getattr(args,"
        f" {name!r}, DEFAULT); of a setting of your own: --custom-config-path"
    )
