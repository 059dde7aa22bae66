"""Seeds of requests on a CPU: SGLang's own registration of one more attention kernel for deterministic inference."""

from __future__ import annotations

import importlib
from typing import Any


def allow_seeds() -> None:
    choices: Any = importlib.import_module("sglang.srt.arg_groups.choices")
    if "torch_native" not in choices.DETERMINISTIC_ATTENTION_BACKEND_CHOICES:
        choices.DETERMINISTIC_ATTENTION_BACKEND_CHOICES.append("torch_native")
