"""What comes out of a sandbox, and what is raised where nothing does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class SandboxUnavailable(RuntimeError):  # noqa: N818
    """The walls cannot be built here; nothing was run. Says what is missing and what to do."""


class SandboxError(RuntimeError):
    """The sandbox itself failed: the call has no result. The program need not be at fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """How one program ended."""

    stdout: str  # bytes that are no UTF-8 replaced
    stderr: str
    exit_code: int  # -N: killed by signal N, as subprocess has it
    killed_by: Literal["time", "memory"] | None  # which of the limits ended it
    truncated: bool  # it said more than output_bytes; the rest is gone
    seconds: float

    @property
    def timed_out(self) -> bool:
        return self.killed_by == "time"

    @property
    def ok(self) -> bool:
        """It came to its end, with exit code 0."""
        return self.exit_code == 0 and self.killed_by is None
