"""Reads and checks an engine's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from pipeline.core.errors import EngineError, ForgottenWeightsError
from pipeline.core.meta_info import VersionSpan, narrow_experts, spans_of
from pipeline.core.types import Completion

try:
    import pybase64 as base64  # comes with SGLang, and takes a fiftieth of the time
except ImportError:
    import base64  # type: ignore[no-redef]


class ExpertsWanted(NamedTuple):
    """What an answer must say of its routed experts."""

    start: int  # the first token, of prompt and answer, whose experts were asked for
    num_inputs: int
    num_layers: int
    top_k: int


def parse_completion(
    body: bytes,
    endpoint: str,
    *,
    confirmed: int = 0,
    boundary_is_old: bool = False,
    experts: ExpertsWanted | None = None,
) -> Completion:
    """The completion in SGLang's answer to a non-streamed /generate. `confirmed`: the version that
    the engine had confirmed when it was asked.

    Raises EngineError when something that training needs is not in it, a ForgottenWeightsError when
    that is its policy version."""
    try:
        answer = orjson.loads(body)
        meta = answer["meta_info"]
        sampled = meta.get("output_token_logprobs") or ()  # [[log-prob, id, None], ...]
        # half the time of zip(*sampled), which holds an iterator for every token
        log_probs = tuple([log_prob for log_prob, _, _ in sampled])
        token_ids = tuple([token_id for _, token_id, _ in sampled])
        reason = meta["finish_reason"]["type"]
        spans = _spans(meta, endpoint, len(token_ids), 0 if reason == "abort" else confirmed)
        wanted = experts if reason != "abort" else None
        return Completion(
            token_ids=token_ids,
            log_probs=log_probs,
            spans=shift_boundaries(spans) if boundary_is_old and len(spans) > 1 else spans,
            finish_reason=reason,
            matched=meta["finish_reason"].get("matched"),
            text=answer.get("text") or "",
            cached_tokens=meta.get("cached_tokens") or 0,
            routed_experts=(
                None
                if wanted is None
                else _routed_experts(meta.get("routed_experts"), endpoint, wanted, len(token_ids))
            ),
            experts_start=0 if wanted is None else wanted.start,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        said = body[:300].decode(errors="replace")
        raise EngineError(
            f"{endpoint} gave an answer without usable log-probs or versions"
            f" ({type(error).__name__}: {error}): {said}"
        ) from error


def _spans(
    meta: Mapping[str, Any], endpoint: str, num_sampled: int, confirmed: int
) -> tuple[VersionSpan, ...]:
    try:
        spans = spans_of(meta, num_sampled)
    except ValueError:
        spans = ()
    if num_sampled and not spans:
        raise ForgottenWeightsError(
            f"{endpoint} answered under weight_version {meta.get('weight_version')!r}, which is no"
            " policy version: was it started anew?"
        )
    if spans and spans[0].version < confirmed:
        raise ForgottenWeightsError(
            f"{endpoint} answered under version {spans[0].version}, and had confirmed {confirmed}:"
            " was it started anew?"
        )
    return spans


def _routed_experts(
    text: str | None, endpoint: str, wanted: ExpertsWanted, num_sampled: int
) -> np.ndarray:
    """[tokens, layers, top-k], which SGLang sends as base64 of int32: the experts of all tokens but
    the last, which no router has seen."""
    if text is None:
        raise EngineError(
            f"{endpoint} gave an answer without routed experts: --use-rollout-routing-replay needs"
            " engines that run with --enable-return-routed-experts, and a model with experts"
        )
    shape = (wanted.num_inputs + num_sampled - 1 - wanted.start, wanted.num_layers, wanted.top_k)
    try:
        return narrow_experts(
            np.frombuffer(base64.b64decode(text, validate=True), np.int32).reshape(shape)
        )
    except (TypeError, ValueError) as error:  # binascii.Error is a ValueError
        raise EngineError(
            f"{endpoint} gave routed experts that are not {shape} [tokens, layers, top-k] numbers:"
            f" {error}"
        ) from error


def shift_boundaries(spans: Sequence[VersionSpan]) -> tuple[VersionSpan, ...]:
    """The spans with the token at every version boundary moved to the older span; a span that
    thereby becomes empty is left out."""
    out: list[VersionSpan] = []
    start = spans[0].start
    for i, span in enumerate(spans):
        last = i == len(spans) - 1
        end = span.end if last else min(span.end + 1, spans[-1].end)
        if end > start:
            out.append(VersionSpan(span.version, start, end))
        start = max(start, end)
    return tuple(out)
