"""The rules for what a custom generate function may return.

A sample that breaks a rule fails; it is never trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipeline.core.errors import GenerateError
from pipeline.core.types import Sample, Status, VersionSpan

TRAINABLE = (Status.COMPLETED, Status.TRUNCATED)
HOW = (
    "append with sample.append_response_tokens(...) or through stages.generate.session.open_session"
)


def check_sample(
    sample: Sample,
    *,
    fallback_version: int | None,
    needs_experts: bool = False,
    log_probs_for: str | None = "the off-policy correction",
) -> None:
    """Raises GenerateError with the rule that `sample` breaks (or its own error, if it has failed);
    fills in what may be left out.

    Left out may be the loss mask (then every response token is trained) and, where
    `fallback_version` is known, the version spans: ported functions have none. The fallback is the
    oldest version served when the function was called, so staleness is over-estimated, never
    under-estimated. `needs_experts`: routed experts are to be replayed. `log_probs_for`: who needs
    rollout log-probs; None: nobody, then they may be left out and are not a number."""
    if sample.status is Status.PENDING:
        raise GenerateError(
            "the function returned a PENDING sample: set sample.status to COMPLETED, TRUNCATED,"
            " ABORTED or FAILED"
        )
    if sample.status not in TRAINABLE:
        raise GenerateError(sample.error or f"the function returned it as {sample.status}")
    n = sample.response_length
    if n < 1 or sample.prompt_length < 1:
        raise GenerateError(
            f"{sample.status} with {len(sample.tokens)} tokens and response_length {n}: expected a"
            f" prompt and a response; {HOW}"
        )
    if sample.loss_mask is None:
        sample.loss_mask = [1] * n
    _expect_length("loss_mask", sample.loss_mask, n)
    if any(m not in (0, 1) for m in sample.loss_mask):
        raise GenerateError(
            f"loss_mask may hold 0 and 1 only, got {sorted(set(sample.loss_mask))[:5]}"
        )
    if log_probs_for is None and _has_none(sample.rollout_log_probs, n):
        sample.rollout_log_probs = [math.nan] * n
    else:
        _check_log_probs(sample, n, log_probs_for or "the log")
    if fallback_version is not None and not any(
        isinstance(s, tuple) for s in sample.weight_versions
    ):
        sample.weight_versions = [VersionSpan(fallback_version, 0, n)]
    _check_spans(sample, n)
    if needs_experts:
        _check_experts(sample)


def _has_none(log_probs: Sequence[float] | None, n: int) -> bool:
    return log_probs is None or (len(log_probs) == n and all(map(math.isnan, log_probs)))


def _check_log_probs(sample: Sample, n: int, needed_by: str) -> None:
    if sample.rollout_log_probs is None:
        raise GenerateError(
            f"no rollout_log_probs for {n} response tokens: {needed_by} needs them; {HOW}"
        )
    _expect_length("rollout_log_probs", sample.rollout_log_probs, n)
    assert sample.loss_mask is not None
    for at, (mask, log_prob) in enumerate(
        zip(sample.loss_mask, sample.rollout_log_probs, strict=True)
    ):
        if mask and not (math.isfinite(log_prob) and log_prob <= 1e-4):
            raise GenerateError(
                f"rollout_log_probs[{at}] = {log_prob} of a trained token: expected a finite"
                " number, at most 0"
            )


def _check_experts(sample: Sample) -> None:
    """Raises GenerateError unless experts are known for every token from which a trained one was
    sampled, and for none that the engine has not seen."""
    experts = sample.rollout_routed_experts
    assert sample.loss_mask is not None
    needed = sample.prompt_length + max(
        (i for i, mask in enumerate(sample.loss_mask) if mask), default=-sample.prompt_length
    )
    shape = None if experts is None else tuple(getattr(experts, "shape", ()))
    if shape is None or len(shape) != 3 or not needed <= shape[0] < len(sample.tokens):
        raise GenerateError(
            f"rollout_routed_experts {'is None' if shape is None else f'has shape {shape}'} for"
            f" {len(sample.tokens)} tokens: --use-rollout-routing-replay needs"
            f" [{len(sample.tokens) - 1}, layers, top-k]; keep them with"
            " sample.add_routed_experts(completion.routed_experts, completion.experts_start), or"
            " through open_session"
        )


def _check_spans(sample: Sample, n: int) -> None:
    assert sample.loss_mask is not None
    covered = 0  # trained tokens before this index have a version
    for span in sample.weight_versions:
        if not isinstance(span, tuple) or len(span) != 3:
            raise GenerateError(
                f"weight_versions holds {span!r}: expected (version, start, end) of response"
                f" tokens; {HOW}"
            )
        _, start, end = span
        if not covered <= start < end <= n:
            raise GenerateError(
                f"version span {tuple(span)} is empty, overlaps the one before or leaves the"
                f" response of {n} tokens"
            )
        if any(sample.loss_mask[covered:start]):
            raise GenerateError(
                f"trained tokens between {covered} and {start} have no policy version; {HOW}"
            )
        covered = end
    if any(sample.loss_mask[covered:]):
        raise GenerateError(f"trained tokens from {covered} to {n} have no policy version; {HOW}")


def _expect_length(name: str, values: Sequence[Any], n: int) -> None:
    if len(values) != n:
        raise GenerateError(f"{name} has {len(values)} entries for response_length {n}; {HOW}")
