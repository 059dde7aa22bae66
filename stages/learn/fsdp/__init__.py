"""The learner on torch's FSDP2 over the Hugging Face model.

Importing this package imports no torch; `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.learn.fsdp.learner import FSDPRank
    from stages.learn.settings import LearnerSettings


def load() -> type[FSDPRank]:
    """Imports torch and transformers, which takes seconds."""
    from stages.learn.fsdp.learner import FSDPRank

    return FSDPRank


def start_rank(settings: LearnerSettings, **kwargs: Any) -> FSDPRank:
    """Makes an FSDPRank in this process; `kwargs` are its constructor's."""
    return load()(settings, **kwargs)
