"""The sample: one trajectory, in slime's names.

Layer 0: standard library and numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from pipeline.core.free_form import keepable
from pipeline.core.meta_info import (
    PrefixCacheInfo,
    SpecInfo,
    Status,
    VersionSpan,
    experts_of,
    spans_of,
    status_of,
)

# inside Sample these names are slime's, which cannot annotate a field
_Status = Status
_SpecInfo = SpecInfo
_PrefixCacheInfo = PrefixCacheInfo


@dataclass(kw_only=True)
class Sample:
    """One trajectory: a prompt and everything generated and everything tools returned. Mutable, as
    in slime.

    `tokens` holds prompt and response ids, the last `response_length` of them are the response.
    `loss_mask`, `rollout_log_probs` and the version spans cover the response only: `len(loss_mask)
    == len(rollout_log_probs) == response_length`; tool tokens have mask 0, log-prob 0.0 and no
    version span.

    Samples that come out of the replay buffer hold read-only numpy arrays instead of lists in
    `tokens` (int64), `loss_mask` (uint8) and `rollout_log_probs` (float32): views of the mapped
    segment file, nothing is copied.

    `rollout_routed_experts` [n, layers, top-k] (uint8, int16 or int32): the experts that the
    engine's routers chose as token i passed through, for the n <= len(tokens) - 1 tokens that did.
    Layers without experts hold zeros.

    User functions may set further attributes (`attributes()`). Copies have them, the next hook
    finds them, and those that JSON can say stay with the sample in the buffer and in snapshots."""

    # slime writes Sample.Status.COMPLETED
    Status: ClassVar[type[Status]] = Status
    SpecInfo: ClassVar[type[SpecInfo]] = SpecInfo
    PrefixCacheInfo: ClassVar[type[PrefixCacheInfo]] = PrefixCacheInfo

    group_index: int | None = None
    # of the rollout, unique over the run: group_index * n_samples_per_prompt + place; fanned-out
    # samples share it
    index: int | None = None
    # samples of one group with the same are of one rollout and share the weight of one (default:
    # those with the same index)
    rollout_id: int | None = None
    prompt: str | list[dict[str, Any]] = ""
    tokens: list[int] = field(default_factory=list)
    response: str = ""
    response_length: int = 0
    label: Any = None
    # a number, a dict with one to train on, or what --custom-reward-post-process-path makes one of
    reward: Any = None
    loss_mask: list[int] | None = None
    status: _Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    multimodal_inputs: dict[str, Any] | None = None
    multimodal_train_inputs: dict[str, Any] | None = None
    weight_versions: list[VersionSpan] = field(default_factory=list)
    rollout_log_probs: list[float] | None = None
    rollout_routed_experts: Any = None  # [n, layers, top-k], see above
    # on-policy distillation: the teacher's, of the response's tokens
    teacher_log_probs: list[float] | None = None
    # [m], [response_length + 1]: top-p kept the words ids[offsets[i] : offsets[i + 1]] for response
    # token i. For user functions: no learner of ours reads them
    rollout_top_p_token_ids: Any = None
    rollout_top_p_token_offsets: Any = None
    remove_sample: bool = False  # keep in the group (for reward normalisation), give it no loss
    generate_function_path: str | None = None
    custom_rm_path: str | None = None
    train_metadata: dict[str, Any] | None = None
    session_id: str | None = None
    non_generation_time: float = 0.0
    spec_info: _SpecInfo = field(default_factory=SpecInfo)
    prefix_cache_info: _PrefixCacheInfo = field(default_factory=PrefixCacheInfo)
    error: str | None = None  # why a FAILED sample failed

    @property
    def prompt_length(self) -> int:
        return len(self.tokens) - self.response_length

    @property
    def effective_response_length(self) -> int:
        """Response tokens that carry loss."""
        return (
            int(np.count_nonzero(self.loss_mask))
            if self.loss_mask is not None
            else self.response_length
        )

    def reward_value(self, key: str | None = None) -> float:
        """The scalar reward; `key` picks one entry where the reward is a dict. Raises ValueError
        where there is no number."""
        if self.reward is None:
            raise ValueError(f"sample {self.index} has no reward yet")
        number = self.reward_number(key)
        if number is None:
            raise ValueError(
                f"sample {self.index}: the reward {self.reward!r:.80} has no number under"
                f" {key or 'score'!r}: set --reward-key, or read sample.reward"
            )
        return number

    def reward_number(self, key: str | None = None) -> float | None:
        """As `reward_value`, but None where there is no number."""
        value = self.reward
        if type(value) is float:  # the checks below cost twenty times as much
            return value
        if isinstance(value, Mapping):
            value = value.get(key or "score")
        if value is None or isinstance(value, str | Sequence | Mapping):
            return None
        try:
            return float(value)
        except (TypeError, ValueError):  # an array of several, say
            return None

    def get_reward_value(self, args: Any) -> float:
        """slime's spelling, for ported custom functions."""
        return self.reward_value(args.reward_key)

    def append_response_tokens(
        self,
        args: Any = None,
        *,
        tokens: Sequence[int] | None = None,
        log_probs: Sequence[float] | None = None,
        spans: Sequence[VersionSpan] | None = None,
        trainable: bool = True,
        meta_info: Mapping[str, Any] | None = None,
        text: str | None = None,
        update_terminal_info: bool = True,
    ) -> None:
        """Append generated tokens (with their log-probs) or, with `trainable=False`, a tool's or an
        environment's (mask 0), to the very lists that the sample holds.

        Written `append_response_tokens(token_ids, log_probs=..., spans=...)`, or as slime has it,
        `append_response_tokens(args, tokens=..., log_probs=..., meta_info=...)`. Versions are of
        `spans`, counted from the first of the tokens, else of `meta_info`, SGLang's of the answer;
        its routed experts are kept too. Its finish reason becomes the status, and its counters are
        added, unless `update_terminal_info` is False. `text` is appended to the response."""
        if tokens is None and isinstance(args, Sequence | np.ndarray):
            args, tokens = None, args
        new = _listed(tokens) if tokens is not None else []
        said = meta_info or {}
        if spans is None:
            spans = spans_of(said, len(new)) if trainable else ()
        self._append(new, None if log_probs is None else _listed(log_probs), spans, trainable)
        self.response += text or ""
        if (experts := experts_of(said, len(self.tokens), args)) is not None:
            self.add_routed_experts(*experts)
        if update_terminal_info and "finish_reason" in said:
            self._finish(said, args)

    def _append(
        self,
        tokens: list[int],
        log_probs: list[float] | None,
        spans: Sequence[VersionSpan],
        trainable: bool,
    ) -> None:
        n, at = len(tokens), self.response_length
        if trainable and n and (log_probs is None or len(log_probs) != n):
            raise ValueError(
                f"{n} generated tokens need {n} log-probs, got"
                f" {None if log_probs is None else len(log_probs)}"
            )
        mask = [1] * at if self.loss_mask is None else self.loss_mask
        known = [0.0] * at if self.rollout_log_probs is None else self.rollout_log_probs
        self.loss_mask = _extended(mask, [int(trainable)] * n)
        self.rollout_log_probs = _extended(
            known, log_probs if trainable and log_probs else [0.0] * n
        )
        self.tokens = _extended(self.tokens, tokens)
        self.response_length = at + n
        for v, start, end in spans:
            last = self.weight_versions[-1] if self.weight_versions else None
            if last and last.version == v and last.end == at + start:
                self.weight_versions[-1] = VersionSpan(v, last.start, at + end)
            else:
                self.weight_versions.append(VersionSpan(v, at + start, at + end))

    def _finish(self, meta_info: Mapping[str, Any], args: Any) -> None:
        if getattr(args, "sglang_speculative_algorithm", None):
            self.spec_info.add(meta_info)
        self.prefix_cache_info.add(meta_info)
        self.status = status_of(meta_info) or self.status

    def add_routed_experts(self, experts: np.ndarray, start: int = 0) -> None:
        """Join what an answer says of tokens start, start + 1, ... (experts: [m, layers, top-k]) to
        what is known.

        What is known stays: it is of the pass that sampled the tokens from there on, while a later
        turn's answer may say how newer weights, or another engine, read them again as a prefix.
        Raises ValueError where a gap would be left."""
        have = self.rollout_routed_experts
        known = 0 if have is None else len(have)
        if start > known:
            raise ValueError(
                f"routed experts of tokens from {start} on, but none of tokens {known} to"
                f" {start - 1}"
            )
        self.rollout_routed_experts = (
            experts if have is None else np.concatenate([have, experts[known - start :]])
        )

    def oldest_version(self) -> int | None:
        """The oldest policy version among the trained tokens (None without any)."""
        if self.loss_mask is None:
            return min((s.version for s in self.weight_versions), default=None)
        return min(
            (s.version for s in self.weight_versions if any(self.loss_mask[s.start : s.end])),
            default=None,
        )

    def attributes(self) -> dict[str, Any]:
        """What user functions have set beside the fields."""
        own = vars(self)
        return {} if len(own) == len(FIELDS) else {k: v for k, v in own.items() if k not in FIELDS}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data (as far as the user's metadata is); attributes that JSON cannot say
        are left out."""
        out = {name: getattr(self, name) for name in FIELDS}
        out.update({k: v.tolist() for k, v in out.items() if isinstance(v, np.ndarray)})
        out["status"] = str(self.status)
        out["weight_versions"] = [list(s) for s in self.weight_versions]
        out["spec_info"] = self.spec_info.to_dict()
        out["prefix_cache_info"] = self.prefix_cache_info.to_dict()
        return out | keepable(self.attributes())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sample:
        known = {name: value for name, value in data.items() if name in FIELDS}
        known["status"] = Status(data.get("status", Status.PENDING))
        known["weight_versions"] = [VersionSpan(*s) for s in data.get("weight_versions", ())]
        known["spec_info"] = SpecInfo.from_dict(data.get("spec_info") or {})
        known["prefix_cache_info"] = PrefixCacheInfo.from_dict(data.get("prefix_cache_info") or {})
        sample = cls(**known)
        vars(sample).update({name: v for name, v in data.items() if name not in FIELDS})
        return sample


FIELDS = dict.fromkeys(f.name for f in fields(Sample))  # in order; looked up by name, too


def _listed(values: Any) -> list[Any]:
    """As a list of Python's numbers: arrays and tensors too."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _extended(have: Any, more: Sequence[Any]) -> list[Any]:
    """`have` with `more` behind it: the same list, for a function that keeps it at hand; a list in
    the place of any other sequence (what comes out of the buffer is read-only)."""
    if not isinstance(have, list):
        return [*have, *more]
    have.extend(more)
    return have
