"""Sources of prompts to derive from: over --prompt-data, as the run's own is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.slime_names import refuse
from stages.source.bases import DataSource as DataSource
from stages.source.bases import RolloutDataSource as _PromptData

from ..utils.misc import load_function
from ..utils.types import Sample

__getattr__ = refuse("slime.rollout.data_source")


class RolloutDataSource(_PromptData):
    """Shuffled, counted in epochs, resumable."""

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self.metadata: dict[str, Any] = {}

    def add_samples(self, samples: list[list[Sample]]) -> None:
        raise RuntimeError(
            f"{type(self).__name__} takes no groups back: derive from RolloutDataSourceWithBuffer"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"prompts": super().state_dict(), "metadata": self.metadata}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state["prompts"])
        self.metadata = state["metadata"]


class RolloutDataSourceWithBuffer(RolloutDataSource):
    """Groups that were added come first, in the order of --buffer-filter-path (default: of their
    coming)."""

    def __init__(self, args: Any) -> None:
        super().__init__(args)
        self.buffer: list[list[Sample]] = []
        path = getattr(args, "buffer_filter_path", None)
        self.buffer_filter = pop_first if path is None else load_function(path)

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        taken = self.buffer_filter(self.args, None, self.buffer, num_samples) if self.buffer else []
        return [*taken, *super().get_samples(num_samples - len(taken))]

    def add_samples(self, samples: list[list[Sample]]) -> None:
        self.buffer += samples

    def get_buffer_length(self) -> int:
        return len(self.buffer)

    def state_dict(self) -> dict[str, Any]:
        kept = [[sample.to_dict() for sample in group] for group in self.buffer]
        return {**super().state_dict(), "buffer": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.buffer = [[Sample.from_dict(s) for s in group] for group in state["buffer"]]


def pop_first(
    args: Any, rollout_id: int | None, buffer: list[list[Sample]], num_samples: int
) -> list[list[Sample]]:
    taken = buffer[:num_samples]
    del buffer[:num_samples]
    return taken
