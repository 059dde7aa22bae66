"""The source of prompts: shuffled anew in every epoch, and able to go on where a run was
interrupted."""

from __future__ import annotations

import copy
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.core.errors import DataError
from pipeline.core.tally import Tally
from pipeline.core.types import Sample
from stages.source.render import Renderer
from stages.source.rows import Row, Rows

logger = logging.getLogger(__name__)
# chunks of an endless task from here on are for evaluation: training never gets there
_HELD_OUT = 1 << 31
LIMIT_FLAG = "--rollout-max-prompt-len"


class PromptSource:
    """Implements `Source`.

    The order depends on seed and epoch only, so a position (epoch, offset) is all that must be
    saved."""

    def __init__(
        self,
        rows: Rows,
        render: Renderer,
        *,
        n_samples_per_prompt: int = 1,
        max_prompt_len: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        limit_flag: str = LIMIT_FLAG,
    ) -> None:
        """`max_prompt_len`: in tokens; `limit_flag` is the flag that sets it. Longer prompts are
        skipped, counted (`num_too_long`) and named (`too_long`, and in the log)."""
        self._rows, self._render = rows, render
        self._n, self._max_len = n_samples_per_prompt, max_prompt_len
        self._limit_flag = limit_flag
        self._shuffle, self._seed = shuffle and not rows.endless, seed
        self._returned: deque[list[Sample]] = deque()
        self.epoch = 0  # times the whole set has been handed out (of an endless task: chunks)
        self._offset = 0
        self._used = 0  # prompts handed out since the epoch began
        self.num_bad_rows = rows.num_bad_rows
        self.num_too_long = 0  # distinct prompts skipped
        # the last of them: (row index, tokens)
        self.too_long: deque[tuple[int, int]] = deque(maxlen=1000)
        self._order_of: tuple[int, np.ndarray] | None = None
        self._skipped = Tally(
            logger, "prompt", f"skipped, longer than {limit_flag} {max_prompt_len}"
        )
        # a template or flag that does not fit says so before anything starts
        render(rows.row(0, 0))

    def __len__(self) -> int:
        """How many prompts an epoch has, before any are skipped for their length."""
        return len(self._rows)

    @property
    def endless(self) -> bool:
        return self._rows.endless

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """See `Source`. Raises DataError when every prompt is over the limit."""
        try:
            return [
                self._returned.popleft() if self._returned else self._next_group()
                for _ in range(num_samples)
            ]
        finally:
            # a file's rows are all met in its first epoch: no more will come
            self._skipped.say(last=self.epoch > 0 and not self._rows.endless)

    def add_samples(self, groups: list[list[Sample]]) -> None:
        self._returned.extend(groups)

    def all_prompts(self, limit: int | None = None) -> list[list[Sample]]:
        """For evaluation: the first `limit` prompts in the set's own order, over-long ones skipped
        (and counted).

        Of an endless task: `limit` prompts that training with the same seed never meets. Moves no
        position."""
        if limit is None and self._rows.endless:
            raise ValueError(f"{self._rows.name} never ends: say how many prompts")
        try:
            return self._first_prompts(limit)
        finally:
            self._skipped.say(last=True)

    def _first_prompts(self, limit: int | None) -> list[list[Sample]]:
        groups: list[list[Sample]] = []
        for chunk in self._held_out():
            before = len(groups)
            for index, row in chunk:
                if limit is not None and len(groups) >= limit:
                    return groups
                if (group := self._group(index, row, first_visit=True)) is not None:
                    groups.append(group)
            if len(groups) == before:
                raise self._nothing_left()
        return groups

    def state_dict(self) -> dict[str, Any]:
        return {
            "prompts": self._identity(),
            "epoch": self.epoch,
            "offset": self._offset,
            "used": self._used,
            "num_too_long": self.num_too_long,
            "returned": [[sample.to_dict() for sample in group] for group in self._returned],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises DataError when the position is one among other prompts, or in another order of
        them."""
        if state["prompts"] != self._identity():
            raise DataError(
                f"the saved position (epoch {state['epoch']}, offset {state['offset']}) belongs to"
                f" other prompts or another shuffle: saved with {state['prompts']}, now"
                f" {self._identity()}. Resume with the same --prompt-data, --rollout-seed and"
                " --rollout-shuffle, or start a new run"
            )
        self.epoch, self._offset, self._used = state["epoch"], state["offset"], state["used"]
        self.num_too_long = state["num_too_long"]
        self._returned = deque(
            [Sample.from_dict(sample) for sample in group] for group in state["returned"]
        )

    def _identity(self) -> dict[str, Any]:
        return {"rows": self._rows.fingerprint(), "shuffle": self._shuffle, "seed": self._seed}

    def _next_group(self) -> list[Sample]:
        while True:
            if self._offset == len(self._rows):
                if self._used == 0:
                    raise self._nothing_left()
                self.epoch, self._offset, self._used = self.epoch + 1, 0, 0
            index = int(self._order(self.epoch)[self._offset])
            self._offset += 1
            # A file's rows are all met in epoch 0: those skipped later are no new ones.
            group = self._group(
                index,
                self._rows.row(self.epoch, index),
                first_visit=self._rows.endless or self.epoch == 0,
            )
            if group is not None:
                self._used += 1
                return group

    def _order(self, epoch: int) -> np.ndarray:
        """The row indices of one epoch, [len(rows)]: a permutation of its own for every epoch."""
        if self._order_of is None or self._order_of[0] != epoch:
            size = len(self._rows)
            order = (
                np.random.default_rng([self._seed, epoch]).permutation(size)
                if self._shuffle
                else np.arange(size)
            )
            self._order_of = (epoch, order)
        return self._order_of[1]

    def _group(self, index: int, row: Row, *, first_visit: bool) -> list[Sample] | None:
        prompt, tokens = self._render(row)
        if self._max_len is not None and len(tokens) > self._max_len:
            if first_visit:
                self.num_too_long += 1
                self.too_long.append((index, len(tokens)))
                self._skipped.add(f"{row.where} ({len(tokens)} tokens)")
            return None
        return [self._sample(row, prompt, tokens) for _ in range(self._n)]

    def _sample(self, row: Row, prompt: str | list[dict[str, Any]], tokens: list[int]) -> Sample:
        # each sample its own: custom functions write into it
        metadata = copy.deepcopy(dict(row.metadata))
        # null: the padding of a Parquet column of objects
        if row.tools and metadata.get("tools") is None:
            metadata["tools"] = copy.deepcopy(row.tools)
        return Sample(
            prompt=copy.deepcopy(prompt),
            # an image is as many tokens as its processor says, when it is generated from
            tokens=[] if row.images else list(tokens),
            multimodal_inputs={"images": list(row.images)} if row.images else None,
            label=copy.deepcopy(row.label),
            # a data file must not name code to run: function paths come from flags and user
            # functions only
            metadata=metadata,
            generate_function_path=row.generate_function_path,
        )

    def _held_out(self) -> Iterator[Iterator[tuple[int, Row]]]:
        """Chunks of (index, row): all rows of a file, or chunk after chunk of an endless task."""
        epochs = itertools.count(_HELD_OUT) if self._rows.endless else (0,)
        for epoch in epochs:
            yield ((index, self._rows.row(epoch, index)) for index in range(len(self._rows)))

    def _nothing_left(self) -> DataError:
        return DataError(
            f"{self._rows.name}: all {len(self._rows)} prompts are longer than"
            f" {self._limit_flag} {self._max_len}; raise it, or look at the prompts"
        )
