"""slime's module names for users' functions: `from slime.utils.types import Sample` finds ours.

The package lies in slipstream/slime_names, which is on no path. It is offered once a process loads
a user's function, behind everything that is installed: where there is a real slime, that one
counts. What is not there is answered in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from pipeline.core.own_files import HOME

FOLDER = HOME / "slipstream" / "slime_names"
_TRAINING = (
    "Slipstream's learner takes its place; a loss, advantages or weights of your own are hooks"
)
_ROLLOUT = "groups are admitted and generated without end, by --custom-generate-function-path"
# the beginning of a name -> what there is instead
INSTEAD = {
    "slime.agent": "slipstream.open_session keeps a conversation, and the router answers over HTTP",
    "slime.backends": _TRAINING,
    "slime.observability": "every run writes trace.jsonl by itself",
    "slime.ray": "a run is started by train_async.py",
    "slime.rollout.fully_async_rollout": _ROLLOUT,
    "slime.rollout.sft_rollout": "--loss-type sft_loss trains on chats as they are",
    "slime.rollout.sglang_rollout": _ROLLOUT,
    "slime.rollout.on_policy_distillation": "--use-opd distils from a teacher",
    "slime.rollout.rm_hub": "the scorers of --rm-type are there, by async_rm and batched_async_rm",
    "slime.utils.arguments": "args is given to every function",
    "slime.utils.data": "slime.rollout.data_source.RolloutDataSource reads --prompt-data",
    "slime.utils.external_utils": "a run is started by train_async.py",
    "slime.utils.ppo_utils": _TRAINING,
}


def no_such(name: str) -> str:
    """In words, for a dotted name that our package does not have."""
    found = next(
        (text for start, text in INSTEAD.items() if f"{name}.".startswith(f"{start}.")), None
    )
    return (
        f"{name} is not among slime's names here: {found or 'docs/custom-functions.md lists them'}"
    )


def refuse(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module of the package: a name that it lacks is answered."""

    def absent(name: str) -> Any:
        if name.startswith("__"):  # asked for by Python itself
            raise AttributeError(name)
        raise ImportError(no_such(f"{module}.{name}"))

    return absent


class _SlimeFinder(MetaPathFinder):
    """Asked last: it finds the package, and says what to take for a module that it lacks."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "slime":
            return PathFinder.find_spec(fullname, [str(FOLDER)])
        if fullname.startswith("slime.") and str(FOLDER / "slime") in sys.modules["slime"].__path__:
            # without its name: a `from ... import` passes over a module that is just not there
            raise ModuleNotFoundError(no_such(fullname))
        return None


_FINDER = _SlimeFinder()


def offer_slime_names() -> None:
    """From here on this process can import them. Idempotent."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
