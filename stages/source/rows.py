"""A prompt as the user wrote it, and a set of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt, as the user wrote it."""

    where: str  # for messages: "math.jsonl line 12"
    prompt: str | Messages
    label: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: list[Any] | None = None
    images: tuple[str, ...] = ()  # data-URLs
    generate_function_path: str | None = None  # of rows that a flag brings, never of a file's


class Rows(Protocol):
    """A set of prompts, seen epoch by epoch.

    A file has the same rows in every epoch, an endless task has new ones.
    """

    name: str
    endless: bool
    num_bad_rows: int

    def __len__(self) -> int:
        """How many rows an epoch has."""

    def row(self, epoch: int, index: int) -> Row: ...

    def fingerprint(self) -> str:
        """A text that changes when the prompts do: a position in one set means nothing in
        another."""
