"""What a user's data source may begin with: slime's base classes, over the run's own prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.core.types import Sample


class DataSource(ABC):
    """Prompts from anywhere, in groups of n_samples_per_prompt samples."""

    @abstractmethod
    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """`num_samples` groups."""

    @abstractmethod
    def add_samples(self, samples: list[list[Sample]]) -> None:
        """Takes groups back, to be handed out again first."""

    @abstractmethod
    def save(self, rollout_id: int) -> None:
        """Writes down how far it is."""

    @abstractmethod
    def load(self, rollout_id: int | None = None) -> None:
        """Goes on from there: the same groups must come again, in the same order."""


class RolloutDataSource(DataSource):
    """The rows of --prompt-data, judged, rendered and shuffled as without a class of one's own: to
    be inherited from, and changed.

    Its position is kept in the run's checkpoints, so that `save` and `load` have nothing to do; a
    subclass with a position of its own overrides them."""

    def __init__(self, args: Any) -> None:
        """Raises ConfigError without --prompt-data, DataError for a bad row."""
        if args.prompt_data is None:
            raise ConfigError("RolloutDataSource reads --prompt-data: set it")
        self.args = args
        self.prompts = args.open_prompt_data()

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        return list(self.prompts.get_samples(num_samples))

    def add_samples(self, samples: list[list[Sample]]) -> None:
        self.prompts.add_samples(samples)

    def save(self, rollout_id: int) -> None: ...

    def load(self, rollout_id: int | None = None) -> None: ...

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self.prompts)

    @property
    def epoch_id(self) -> int:
        """How often all rows have been handed out."""
        return int(self.prompts.epoch)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.prompts.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts.load_state_dict(state)
