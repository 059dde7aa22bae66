"""The report's samples: what the model said in the last rollouts, with reward and policy
versions."""

from __future__ import annotations

from html import escape

from pipeline.core.format import number
from pipeline.report.summary import History
from pipeline.run.record_file import Record


def sample_title(history: History) -> str:
    return "What it was trained on" if history.is_supervised else "What the model said"


def sample_note(history: History) -> str:
    order = "" if history.is_supervised else ", from the lowest reward to the highest"
    return (
        f"A few samples of the last rollouts{order}: the prompt, and below it the response."
        " samples.jsonl has those of every rollout."
    )


def sample_list(history: History) -> str:
    """The newest rollout's samples open, those of the others folded."""
    return "".join(
        f"<details{' open' if place == 0 else ''}><summary>rollout"
        f" {number(samples[0]['rollout_id'])}, trained at policy version"
        f" {number(samples[0]['policy_version'])}</summary>"
        f"{''.join(_sample(sample, history.is_supervised) for sample in samples)}</details>"
        for place, samples in enumerate(history.samples)
    )


def _sample(sample: Record, supervised: bool) -> str:
    facts = [
        "" if supervised else f"reward {number(sample['reward'])}",
        str(sample["status"]),
        f"{number(sample['response_length'])} tokens",
        _versions(sample),
        f"group {number(sample['group'])}, sample {number(sample['place'])}",
    ]
    if sample["label"] is not None:
        facts.append(f"label {sample['label']}")
    return (
        f'<div class="sample"><p class="soft">{escape(" · ".join(filter(None, facts)))}</p>'
        f"<pre>{escape(sample['prompt'])}</pre>"
        f'<pre class="said">{escape(sample["response"]) or "(nothing)"}</pre></div>'
    )


def _versions(sample: Record) -> str:
    """Which weights sampled how many of its tokens."""
    spans = sample["token_versions"]
    if len(spans) == 1:
        return f"sampled by version {number(spans[0][0])}"
    parts = [f"{number(num)} by version {number(version)}" for version, num in spans]
    return f"sampled {', '.join(parts)}" if parts else ""
