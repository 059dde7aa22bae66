"""A session's tree as samples: one a branch, all of one rollout."""

from __future__ import annotations

import copy

from pipeline.core.protocols import Tokenizer
from pipeline.core.types import Sample, Status
from stages.gateway.tree import Branch, TokenTree


def samples_of(
    tree: TokenTree, sample: Sample, tokenizer: Tokenizer, *, truncated: bool, skip_special: bool
) -> list[Sample]:
    """Copies of `sample`, oldest branch first. `truncated`: the session was cut off, or refused for
    want of room; else a branch is where its last answer was. `skip_special`: leaves special tokens
    out of the text."""
    branches = tree.branches()
    return [
        _filled(sample, branch, i, len(branches), tokenizer, truncated, skip_special)
        for i, branch in enumerate(branches)
    ]


def _filled(
    sample: Sample,
    branch: Branch,
    number: int,
    num_branches: int,
    tokenizer: Tokenizer,
    truncated: bool,
    skip_special: bool,
) -> Sample:
    out = copy.copy(sample)
    out.tokens = branch.tokens
    out.response_length = len(branch.tokens) - branch.num_prompt
    out.loss_mask, out.rollout_log_probs = branch.loss_mask, branch.log_probs
    out.weight_versions = branch.spans
    out.response = tokenizer.decode(
        branch.tokens[branch.num_prompt :], skip_special_tokens=skip_special
    )
    out.metadata = {**sample.metadata, "branch": number, "num_branches": num_branches}
    cut = truncated or branch.leaf.finish_reason == "length"
    out.status = Status.TRUNCATED if cut else Status.COMPLETED
    out.rollout_routed_experts = None
    for node in branch.leaf.way:
        known = len(out.rollout_routed_experts) if out.rollout_routed_experts is not None else 0
        if node.experts is not None and node.experts_start <= known:
            out.add_routed_experts(node.experts, node.experts_start)
    return out
