"""The learner on Megatron-core.

Importing this package imports neither torch nor Megatron; `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.learn.megatron.learner import MegatronRank
    from stages.learn.settings import LearnerSettings


def load() -> type[MegatronRank]:
    """Import torch and Megatron (which takes seconds), with the environment set up before."""
    from stages.learn.megatron import compat

    compat.prepare_environment()
    from stages.learn.megatron.learner import MegatronRank

    return MegatronRank


def start_rank(settings: LearnerSettings, **kwargs: Any) -> MegatronRank:
    """A MegatronRank in this process; `kwargs` are its constructor's."""
    return load()(settings, **kwargs)
