"""The key that engines may ask for, as every part that talks HTTP to one sends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def engine_headers(sglang: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a request to an engine that was started with these options (ServerArgs field
    -> value).

    SGLang asks for `admin_api_key`, where there is one, at the routes that change something, and
    for `api_key` at all others (sglang/srt/utils/auth.py); one key must therefore be good for
    both, which configs/rules/engine_flags.py sees to."""
    key = sglang.get("admin_api_key") or sglang.get("api_key")
    return {"Authorization": f"Bearer {key}"} if key else {}
