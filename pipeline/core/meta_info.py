"""What an engine's answer says of its tokens (SGLang's `meta_info`), and how a sample keeps it."""

from __future__ import annotations

import base64
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class VersionSpan(NamedTuple):
    """Response tokens [start, end) were sampled by the weights of policy `version` (indices into
    the response)."""

    version: int
    start: int
    end: int


class Status(enum.StrEnum):
    """Where a sample is in its life."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(slots=True)
class SpecInfo:
    """Speculative decoding of one sample, summed over its requests."""

    spec_accept_token_num: int = 0
    spec_draft_token_num: int = 0
    spec_verify_ct: int = 0
    completion_token_num: int = 0

    @property
    def spec_accept_rate(self) -> float:
        """Accepted tokens a drafted one (0 without any)."""
        return self.spec_accept_token_num / max(self.spec_draft_token_num, 1)

    @property
    def spec_accept_length(self) -> float:
        """Tokens a verification (0 without any)."""
        return self.completion_token_num / self.spec_verify_ct if self.spec_verify_ct else 0.0

    def add(self, meta_info: Mapping[str, Any]) -> None:
        self.spec_accept_token_num += meta_info.get("spec_accept_token_num", 0)
        self.spec_draft_token_num += meta_info.get("spec_draft_token_num", 0)
        self.spec_verify_ct += meta_info.get("spec_verify_ct", 0)
        self.completion_token_num += meta_info.get("completion_tokens", 0)

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in SpecInfo.__slots__}

    @classmethod
    def from_dict(cls, data: Mapping[str, int]) -> SpecInfo:
        return cls(**data)


@dataclass(slots=True)
class PrefixCacheInfo:
    """Prompt tokens of one sample that engines had in their prefix cache, summed over its
    requests."""

    cached_tokens: int = 0
    total_prompt_tokens: int = 0

    @property
    def prefix_cache_hit_rate(self) -> float:
        return self.cached_tokens / max(self.total_prompt_tokens, 1)

    def add(self, meta_info: Mapping[str, Any]) -> None:
        self.cached_tokens += meta_info.get("cached_tokens", 0)
        self.total_prompt_tokens += meta_info.get("prompt_tokens", 0)

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in PrefixCacheInfo.__slots__}

    @classmethod
    def from_dict(cls, data: Mapping[str, int]) -> PrefixCacheInfo:
        return cls(**data)


_STATUSES = {"stop": Status.COMPLETED, "length": Status.TRUNCATED, "abort": Status.ABORTED}


def status_of(meta_info: Mapping[str, Any]) -> Status | None:
    """The status that the finish reason stands for; None where the answer gives no known one."""
    reason = meta_info.get("finish_reason")
    return _STATUSES.get(reason["type"]) if reason else None


def spans_of(meta_info: Mapping[str, Any], num_tokens: int) -> tuple[VersionSpan, ...]:
    """Which versions sampled the answer's `num_tokens` tokens: `weight_versions` says it token by
    token, else `weight_version` for all. Empty where the answer does not say, or where its server
    counts no versions (SGLang's own default is a word)."""
    labels = meta_info.get("weight_versions")
    if labels:
        return tuple(
            [
                VersionSpan(int(v["version"]), v["start"], min(v["end"], num_tokens))
                for v in labels
                if v["start"] < num_tokens
            ]
        )
    version = str(meta_info.get("weight_version", ""))
    return (VersionSpan(int(version), 0, num_tokens),) if version.isdigit() and num_tokens else ()


def experts_of(
    meta_info: Mapping[str, Any], num_tokens: int, args: Any
) -> tuple[np.ndarray, int] | None:
    """([tokens, layers, top-k] experts, first token that they are of), or None where the answer has
    none. `num_tokens`: of prompt and response; no router has seen the last of them.

    SGLang sends base64 of int32; the model's shape is `args.num_layers`, `args.moe_router_topk`.
    Raises ValueError where they do not fit."""
    said = meta_info.get("routed_experts")
    if said is None:
        return None
    if args is None:
        raise ValueError(
            "meta_info has routed_experts: give args too, append_response_tokens(args, tokens=...)"
        )
    start = int(meta_info.get("routed_experts_start_len") or 0)
    shape = (max(num_tokens - 1 - start, 0), args.num_layers, args.moe_router_topk)
    flat = np.frombuffer(base64.b64decode(said), np.int32) if isinstance(said, str) else said
    try:
        return narrow_experts(np.asarray(flat).reshape(shape)), start
    except ValueError as error:
        raise ValueError(
            f"routed_experts of an answer are not {shape} [tokens, layers, top-k]: {error}"
        ) from error


def narrow_experts(experts: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest of uint8, int16 and int32 that holds them: they are most of
    a rollout's bytes."""
    low, high = (int(experts.min()), int(experts.max())) if experts.size else (0, 0)
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return experts.astype(dtype, copy=False)
    raise ValueError(f"experts {low} to {high}: expected 32-bit numbers")
