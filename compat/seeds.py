"""Seeds of requests on a CPU: deterministic inference with torch's own kernels.

SGLang's own registration adds torch_native to the attention kernels that it knows for that mode. Its batch-invariant matrix products are
Triton kernels, which no CPU runs: without them a request's noise is its own, but rounding still depends on who is in the batch.
"""

from __future__ import annotations

import importlib
from typing import Any


def allow_seeds() -> None:
    choices: Any = importlib.import_module("sglang.srt.arg_groups.choices")
    choices.add_deterministic_attention_backend_choices(["torch_native"])


def without_invariant_kernels() -> None:
    operators: Any = importlib.import_module("sglang.srt.batch_invariant_ops")
    operators.enable_batch_invariant_mode = lambda *_args, **_kwargs: None
