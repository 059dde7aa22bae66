"""Every protocol that the gateway speaks."""

from __future__ import annotations

from stages.gateway.dialect import ChatCompletions, CountDialect, Dialect
from stages.gateway.protocols.completions import Completions
from stages.gateway.protocols.messages import Messages, MessageTokens
from stages.gateway.protocols.responses import Responses

DIALECTS: tuple[Dialect, ...] = (ChatCompletions(), Completions(), Responses(), Messages())
COUNTS: tuple[CountDialect, ...] = (MessageTokens(),)
