"""What the model said, for people to read: a few samples of every rollout as records of kind
`sample`, which go to samples.jsonl and to the trackers, never to metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.core.format import counted
from pipeline.core.types import Group, Sample, Status
from pipeline.run.metrics import is_trained
from pipeline.run.record_file import Record, read_records

MAX_CHARACTERS = 4000  # of a prompt or response; the middle of longer ones is left out


def sample_records(
    groups: Sequence[Group],
    *,
    rollout_id: int,
    policy_version: int,
    reward_key: str | None,
    limit: int,
) -> list[Record]:
    """At most `limit` scored samples, from the lowest reward to the highest, evenly spaced in that
    order; those whose reward has no number come first."""
    scored = [
        (sample.reward_number(reward_key), group.group_index, place, sample)
        for group in groups
        for place, sample in enumerate(group.samples)
        if sample.reward is not None and sample.status is not Status.FAILED
    ]
    scored.sort(key=_from_the_lowest)
    step = max((len(scored) - 1) / max(limit - 1, 1), 1.0)
    chosen = [scored[round(i * step)] for i in range(min(limit, len(scored)))]
    return [
        {
            "kind": "sample",
            "rollout_id": rollout_id,
            "policy_version": policy_version,
            "group": group,
            "place": place,
            "reward": reward,
            "status": str(sample.status),
            "token_versions": _versions(sample),
            "response_length": sample.response_length,
            "label": shortened(str(sample.label)) if sample.label is not None else None,
            "prompt": shortened(text_of(sample.prompt)),
            "response": shortened(sample.response),
        }
        for reward, group, place, sample in chosen
    ]


def _from_the_lowest(entry: tuple[float | None, int, int, Sample]) -> tuple[float, int, int]:
    reward, group, place, _ = entry
    return -math.inf if reward is None else reward, group, place


def _versions(sample: Sample) -> list[list[int]]:
    """[policy version, response tokens that its weights sampled], in order."""
    return [[int(version), int(end - start)] for version, start, end in sample.weight_versions]


def text_of(prompt: str | Sequence[dict[str, Any]]) -> str:
    """A chat as a person reads it: a paragraph a message, its role ahead; what is no text by its
    type."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{m.get('role', '?')}: {_content(m.get('content'))}" for m in prompt)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(
            str(part.get("text", f"[{part.get('type', 'part')}]"))
            if isinstance(part, dict)
            else str(part)
            for part in content
        )
    return "" if content is None else str(content)


def shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def last_samples(path: Path, num_rollouts: int) -> list[list[Record]]:
    """The samples of the last rollouts in samples.jsonl: one list for every rollout, the newest
    first."""
    by_rollout: dict[int, list[Record]] = {}
    for record in read_records(path):
        by_rollout.setdefault(record["rollout_id"], []).append(record)
    return [by_rollout[rollout] for rollout in sorted(by_rollout, reverse=True)[:num_rollouts]]


def losses_in_words(groups: Sequence[Group]) -> str:
    """How many samples of a rollout have a loss, and what takes it from the others."""
    samples = [sample for group in groups for sample in group.samples]
    trained = sum(map(is_trained, samples))
    removed = sum(s.remove_sample for s in samples)
    failed = sum(s.status is Status.FAILED and not s.remove_sample for s in samples)
    return (
        f"of {counted(len(samples), 'sample')} {trained} with a loss, {removed} with remove_sample"
        f" (--rollout-sample-filter-path sets it), {failed} failed,"
        f" {len(samples) - trained - removed - failed} with no token of loss mask 1"
    )
