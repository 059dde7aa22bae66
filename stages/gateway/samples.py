"""A session's tree as samples: one a branch, all of one rollout."""

from __future__ import annotations

import copy

from pipeline.core.agent_counts import AGENT
from pipeline.core.protocols import Tokenizer
from pipeline.core.types import Sample, Status
from stages.gateway.session import Session
from stages.gateway.tree import Branch


def samples_of(
    session: Session, sample: Sample, tokenizer: Tokenizer, *, cut_off: bool, skip_special: bool
) -> list[Sample]:
    """Copies of `sample`, oldest branch first. `cut_off`: the session was not at its end. It, or a
    request that had no room, truncates all; else a branch is where its last answer was.
    `skip_special`: leaves special tokens out of the text."""
    branches = session.tree.branches()
    about = {
        "parts": len(branches),
        "requests": session.num_requests,
        "calls": session.num_calls,
        "forks": session.tree.num_branches,
    }
    made = []
    for part, branch in enumerate(branches):
        out = _filled(sample, branch)
        out.metadata = {**sample.metadata, AGENT: {"part": part, **about}}
        out.response = tokenizer.decode(
            branch.tokens[branch.num_prompt :], skip_special_tokens=skip_special
        )
        cut = cut_off or session.is_truncated or branch.leaf.finish_reason == "length"
        out.status = Status.TRUNCATED if cut else Status.COMPLETED
        made.append(out)
    return made


def _filled(sample: Sample, branch: Branch) -> Sample:
    out = copy.copy(sample)
    out.tokens = branch.tokens
    out.response_length = len(branch.tokens) - branch.num_prompt
    out.loss_mask, out.rollout_log_probs = branch.loss_mask, branch.log_probs
    out.weight_versions = branch.spans
    out.rollout_routed_experts = None
    for node in branch.leaf.way:
        known = len(out.rollout_routed_experts) if out.rollout_routed_experts is not None else 0
        if node.experts is not None and node.experts_start <= known:
            out.add_routed_experts(node.experts, node.experts_start)
    return out
