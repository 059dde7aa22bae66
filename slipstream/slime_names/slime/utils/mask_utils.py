"""Which tokens of a chat are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pipeline.core.conversation import LossMaskType
from pipeline.core.slime_names import refuse
from pipeline.core.supervision import Supervision

__getattr__ = refuse("slime.utils.mask_utils")


def get_response_lengths(loss_masks: Sequence[Sequence[int]]) -> list[int]:
    """Of each: from the first trained token to the end."""
    return [len(mask) - list(mask).index(1) if 1 in mask else 0 for mask in loss_masks]


class MultiTurnLossMaskGenerator:
    """By the tokenizer's chat template; `tokenizer_type` as --loss-mask-type."""

    def __init__(self, tokenizer: Any, tokenizer_type: LossMaskType = "qwen") -> None:
        self.tokenizer, self.tokenizer_type = tokenizer, tokenizer_type
        self._supervision = Supervision(tokenizer=tokenizer, loss_mask_type=tokenizer_type)

    def get_loss_mask(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None = None
    ) -> tuple[list[int], list[int]]:
        """(token ids, loss mask) of the whole chat."""
        return self._supervision.sequence([dict(m) for m in messages], None, tools)

    def get_response_lengths(self, loss_masks: Sequence[Sequence[int]]) -> list[int]:
        return get_response_lengths(loss_masks)

    def get_text_from_loss_mask(
        self, token_ids: Sequence[int], loss_masks: Sequence[int]
    ) -> list[str]:
        """The trained parts."""
        marked = groupby(zip(token_ids, loss_masks, strict=True), key=lambda pair: pair[1])
        return [
            self.tokenizer.decode([token for token, _ in part])
            for trained, part in marked
            if trained
        ]
