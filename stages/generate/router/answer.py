"""A completion in the form of SGLang's answer to /generate."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.core.types import Completion

Decode = Callable[[list[int]], str]


def answer_of(
    completion: Completion,
    *,
    rid: str,
    num_prompt_tokens: int,
    version: int,
    seconds: float,
    decode: Decode | None = None,
) -> dict[str, Any]:
    """`version`: of an answer without tokens. `decode`: where every token's text is asked for.

    `weight_version` is the newest of the answer's tokens; `weight_versions`, SGLang's own key, says
    [start, end) of each, so that a push inside the answer is not lost."""
    ids = list(completion.token_ids)
    spans = completion.spans
    reason: dict[str, Any] = {"type": completion.finish_reason}
    if completion.finish_reason == "length":
        reason["length"] = len(ids)
    if completion.matched is not None:
        reason["matched"] = completion.matched
    meta = {
        "id": rid,
        "finish_reason": reason,
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": len(ids),
        "cached_tokens": completion.cached_tokens,
        "weight_version": str(spans[-1].version if spans else version),
        "weight_versions": [
            {"version": str(s.version), "start": s.start, "end": s.end} for s in spans
        ],
        "output_token_logprobs": [
            [log_prob, token, decode([token]) if decode else None]
            for log_prob, token in zip(completion.log_probs, ids, strict=True)
        ],
        "e2e_latency": seconds,
    }
    if completion.routed_experts is not None:
        experts = np.ascontiguousarray(completion.routed_experts, dtype=np.int32)
        meta["routed_experts"] = base64.b64encode(experts.tobytes()).decode()
        meta["routed_experts_start_len"] = completion.experts_start
    return {"text": completion.text, "output_ids": ids, "meta_info": meta}


def aborted(rid: str, num_prompt_tokens: int, version: int, seconds: float) -> dict[str, Any]:
    nothing = Completion(token_ids=(), log_probs=(), spans=(), finish_reason="abort")
    return answer_of(
        nothing, rid=rid, num_prompt_tokens=num_prompt_tokens, version=version, seconds=seconds
    )
