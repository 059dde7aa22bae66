"""Sources of prompts to derive from: over --prompt-data, as the run's own is."""

from __future__ import annotations

import abc
import dataclasses
import json
from pathlib import Path
from typing import Any

from configs.schema import DataConfig
from pipeline.core.slime_names import refuse
from stages.source import build_source

from ..utils.misc import load_function
from ..utils.processing_utils import tokenizer_of
from ..utils.types import Sample

__getattr__ = refuse("slime.rollout.data_source")


class DataSource(abc.ABC):
    @abc.abstractmethod
    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """`num_samples` groups."""

    @abc.abstractmethod
    def add_samples(self, samples: list[list[Sample]]) -> None:
        """Groups to hand out again."""

    @abc.abstractmethod
    def save(self, rollout_id: int) -> None:
        """Keep where it stands, under a number."""

    @abc.abstractmethod
    def load(self, rollout_id: int | None = None) -> None:
        """Stand where `save` was called with that number."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Prompts an epoch."""


class RolloutDataSource(DataSource):
    """Over --prompt-data: shuffled, counted in epochs, resumable."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.metadata: dict[str, Any] = {}
        self.prompts = build_source(
            args.prompt_data,
            _data_config(args),
            args.n_samples_per_prompt,
            args.rollout_max_prompt_len,
            tokenizer_of(args),
        )

    @property
    def epoch_id(self) -> int:
        return self.prompts.epoch

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        return self.prompts.get_samples(num_samples)

    def add_samples(self, samples: list[list[Sample]]) -> None:
        raise RuntimeError(
            f"{type(self).__name__} takes no groups back: derive from RolloutDataSourceWithBuffer"
        )

    def save(self, rollout_id: int) -> None:
        place = self._place(rollout_id)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(self._state()), encoding="utf-8")

    def load(self, rollout_id: int | None = None) -> None:
        self._set_state(json.loads(self._place(rollout_id).read_text(encoding="utf-8")))

    def __len__(self) -> int:
        return len(self.prompts)

    def _place(self, rollout_id: int | None) -> Path:
        folder = Path(self.args.save or Path(self.args.runs_dir) / (self.args.name or "run"))
        return folder / "rollout" / f"data_source_{rollout_id}.json"

    def _state(self) -> dict[str, Any]:
        return {"prompts": self.prompts.state_dict(), "metadata": self.metadata}

    def _set_state(self, state: dict[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
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

    def _state(self) -> dict[str, Any]:
        kept = [[sample.to_dict() for sample in group] for group in self.buffer]
        return {**super()._state(), "buffer": kept}

    def _set_state(self, state: dict[str, Any]) -> None:
        super()._set_state(state)
        self.buffer = [[Sample.from_dict(s) for s in group] for group in state["buffer"]]


def pop_first(
    args: Any, rollout_id: int | None, buffer: list[list[Sample]], num_samples: int
) -> list[list[Sample]]:
    taken = buffer[:num_samples]
    del buffer[:num_samples]
    return taken


def _data_config(args: Any) -> DataConfig:
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(DataConfig)}
    # parsed in args, as slime has it
    given["apply_chat_template_kwargs"] = json.dumps(args.apply_chat_template_kwargs)
    return DataConfig(**given)
