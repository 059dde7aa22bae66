"""Texts whose tokens are known, so that a conversation in text is never encoded again.

A function that sends `text` sends with every turn what was answered before. Encoded anew, that is
often other tokens than the sampled ones, those that the function keeps and that are trained: the
engine would go on from a context that no learner sees."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence

MAX_TEXTS = 1 << 14
MAX_CHARACTERS = 1 << 26


class KnownTexts:
    """The tokens of the latest texts, prompts with their answers. Of two answers with the same text
    the later one counts."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        *,
        max_texts: int = MAX_TEXTS,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        self._encode = encode
        self._max_texts, self._max_characters = max_texts, max_characters
        self._tokens: OrderedDict[str, tuple[int, ...]] = OrderedDict()  # the oldest first
        self._sorted: list[str] = []
        self._num_characters = 0

    def tokens_of(self, text: str) -> list[int]:
        """Those of the longest known beginning, and the rest encoded on its own."""
        known = self._longest_beginning(text)
        if known is None:
            return self._encode(text)
        self._tokens.move_to_end(known)
        rest = text[len(known) :]
        return [*self._tokens[known], *(self._encode(rest) if rest else ())]

    def remember(self, text: str, tokens: Sequence[int]) -> None:
        if text not in self._tokens:
            insort(self._sorted, text)
            self._num_characters += len(text)
        self._tokens[text] = tuple(tokens)
        self._tokens.move_to_end(text)
        while len(self._tokens) > self._max_texts or self._num_characters > self._max_characters:
            oldest, _ = self._tokens.popitem(last=False)
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._num_characters -= len(oldest)

    def _longest_beginning(self, text: str) -> str | None:
        """Whatever sorts between a beginning of `text` and `text` has that beginning too; so it is
        in what `text` shares with its neighbour."""
        while text:
            at = bisect_right(self._sorted, text)
            if at == 0:
                return None
            neighbour = self._sorted[at - 1]
            if text.startswith(neighbour):
                return neighbour
            text = text[: _num_shared(neighbour, text)]
        return None


def _num_shared(a: str, b: str) -> int:
    """Characters at the beginning that both have."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
