"""The prompt source: an order over rows, different every epoch, that a restart takes up exactly where it was."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

from configs.schema import DataConfig
from pipeline.errors import DataError
from pipeline.protocols import Tokenizer
from pipeline.types import Sample
from stages.source.rows import PROCEDURAL_SIZE, Row, Rows, TaskRows, open_rows

logger = logging.getLogger(__name__)
SFT_SEED_OFFSET = 1_000_003  # a warm-up on a procedural task must not show the prompts of the rollouts


class PromptSource:
    """Implements `Source`. Prompts over the limit are skipped, counted (`num_skipped`) and named in the log."""

    def __init__(
        self, rows: Rows, config: DataConfig, n_samples_per_prompt: int, max_prompt_len: int | None, tokenizer: Tokenizer | None
    ) -> None:
        self._rows, self._config, self._n = rows, config, n_samples_per_prompt
        self._max_prompt_len, self._tokenizer = max_prompt_len, tokenizer
        self._epoch = self._offset = 0
        self._returned: list[list[Sample]] = []
        self._order_of: tuple[int, list[int]] | None = None  # (epoch, order): the current epoch's
        self._too_long: set[int] = set()

    @property
    def num_skipped(self) -> int:
        """Distinct prompts skipped for their length."""
        return len(self._too_long)

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        """Groups given back first, then the epoch's order. Raises DataError when every prompt of an epoch is over the limit."""
        groups, self._returned = self._returned[:num_samples], self._returned[num_samples:]
        while len(groups) < num_samples:
            sample = self._next()
            groups.append([copy.deepcopy(sample) for _ in range(self._n)])
        return groups

    def add_samples(self, groups: list[list[Sample]]) -> None:
        self._returned += groups

    def all_prompts(self, limit: int) -> list[Sample]:
        """One sample a prompt in file order, at most `limit`; for evaluation."""
        found = (self._sample(i) for i in range(len(self._rows)))
        return list(itertools.islice((s for s in found if s is not None), limit))

    def state_dict(self) -> dict[str, Any]:
        returned = [[s.to_dict() for s in group] for group in self._returned]
        return {"epoch": self._epoch, "offset": self._offset, "num_rows": len(self._rows), "returned": returned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["num_rows"] != len(self._rows):
            raise DataError(
                f"the prompt data has {len(self._rows)} rows, the run to resume had {state['num_rows']}: its position means nothing here. "
                "Give the same --prompt-data"
            )
        self._epoch, self._offset = state["epoch"], state["offset"]
        self._returned = [[Sample.from_dict(s) for s in group] for group in state["returned"]]

    def _next(self) -> Sample:
        for _ in range(len(self._rows)):
            index = self._index(self._epoch, self._offset)
            self._offset += 1
            if self._offset == len(self._rows):
                self._epoch, self._offset = self._epoch + 1, 0
            if (sample := self._sample(index)) is not None:
                return sample
        raise DataError(f"all {len(self._rows)} prompts are longer than --rollout-max-prompt-len {self._max_prompt_len}")

    def _index(self, epoch: int, offset: int) -> int:
        # A procedural task is random in its index already: shuffling a million numbers would only cost time.
        if not self._config.rollout_shuffle or (isinstance(self._rows, TaskRows) and len(self._rows) == PROCEDURAL_SIZE):
            return offset
        if self._order_of is None or self._order_of[0] != epoch:
            order = list(range(len(self._rows)))
            random.Random(f"{self._config.rollout_seed}/{epoch}").shuffle(order)
            self._order_of = (epoch, order)
        return self._order_of[1][offset]

    def _sample(self, index: int) -> Sample | None:
        row = self._rows.row(index)
        prompt = render(row, self._config, self._tokenizer)
        tokens: list[int] = []
        if self._tokenizer is not None:
            tokens = encode(prompt, row, self._tokenizer)
            if self._max_prompt_len is not None and len(tokens) > self._max_prompt_len:
                if index not in self._too_long:
                    self._too_long.add(index)
                    logger.warning("prompt %d skipped: %d tokens, --rollout-max-prompt-len is %d", index, len(tokens), self._max_prompt_len)
                return None
        return Sample(prompt=prompt, tokens=tokens, label=row.label, metadata={**row.metadata, "prompt_index": index})


def render(row: Row, config: DataConfig, tokenizer: Tokenizer | None) -> str | list[dict[str, Any]]:
    """The prompt as the model gets it: through the chat template where asked for."""
    if not config.apply_chat_template:
        return row.prompt
    messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else list(row.prompt)
    if config.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": config.system_prompt}, *messages]
    if tokenizer is None:
        return messages
    return str(tokenizer.apply_chat_template(messages, tools=row.tools, tokenize=False, add_generation_prompt=True))


def encode(prompt: str | list[dict[str, Any]], row: Row, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer.encode(prompt, add_special_tokens=False))
    return list(tokenizer.apply_chat_template(prompt, tools=row.tools, tokenize=True, add_generation_prompt=True, return_dict=False))


def build_source(
    spec: str, config: DataConfig, n_samples_per_prompt: int, max_prompt_len: int | None, tokenizer: Tokenizer | None
) -> PromptSource:
    """All rows of a file are read and checked here, before anything starts. Raises DataError."""
    return PromptSource(open_rows(spec, config), config, n_samples_per_prompt, max_prompt_len, tokenizer)


def sft_pairs(spec: str, config: DataConfig, tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Endless (prompt ids, answer ids with the end token) for a warm-up; a procedural task is seeded apart from the rollouts."""
    config = dataclasses.replace(config, rollout_seed=config.rollout_seed + SFT_SEED_OFFSET)
    source = build_source(spec, config, 1, None, tokenizer)
    while True:
        [[sample]] = source.get_samples(1)
        if sample.label is None:
            raise DataError(f"{spec}: a warm-up needs answers, and prompt {sample.metadata['prompt_index']} has no label (--label-key)")
        yield sample.tokens, [*tokenizer.encode(str(sample.label), add_special_tokens=False), tokenizer.eos_token_id]
