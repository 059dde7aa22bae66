"""Every protocol that the gateway speaks."""

from __future__ import annotations

from stages.gateway.dialect import ChatCompletions, Dialect

DIALECTS: tuple[Dialect, ...] = (ChatCompletions(),)
