"""The learner on Megatron-core. Importing this package imports neither torch nor Megatron; `start_rank` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.learn.megatron.learner import MegatronRank
    from stages.learn.settings import LearnerSettings


def start_rank(settings: LearnerSettings, **kwargs: Any) -> MegatronRank:
    """A MegatronRank, with the environment set up before torch and Megatron are imported (which takes seconds)."""
    import compat as wheels
    from stages.learn.megatron import compat

    compat.prepare_environment()
    wheels.install()
    from stages.learn.megatron.learner import MegatronRank

    return MegatronRank(settings, **kwargs)
