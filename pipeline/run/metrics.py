"""What a run reports about itself, as plain records: measures such as staleness, and the builders
of the rows of metrics.jsonl.

Pure: nothing here does I/O, and time is a parameter. A record is a flat dict of scalars (but for a
train record's `histograms`); its `kind` is one of train (one rollout trained on), eval (one data
set evaluated), push (one weight push completed), engine (the pool: `event` is start | death |
restart | lost | drained | stats), learner (`event` is restore), wait (nothing was trained for long:
who is awaited, what was dropped), sample (what the model said, see samples.py)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from pipeline.core.histogram import RATIO_BIN, Histogram
from pipeline.core.types import EvalResult, Group, PushResult, Sample, Status, StepResult
from pipeline.run.utilisation import Lap
from stages.advantage.rewards import rollout_ids

Kind = Literal["train", "eval", "push", "engine", "learner", "wait", "sample"]
KINDS: tuple[str, ...] = get_args(Kind)
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness:
    """Token-wise staleness, in policy versions: every trained token counts once.

    Quantiles are nearest-rank, so always a value that occurs.
    """

    mean: float
    p50: int
    p99: int
    max: int

    @classmethod
    def of(cls, tokens_by_staleness: Mapping[int, int]) -> Staleness:
        """From a histogram, staleness -> number of tokens. All zero when it is empty."""
        total = sum(tokens_by_staleness.values())
        if not total:
            return cls(mean=0.0, p50=0, p99=0, max=0)
        mean = sum(s * n for s, n in tokens_by_staleness.items()) / total
        p50, p99 = (_weighted_quantile(tokens_by_staleness, total, q) for q in (0.50, 0.99))
        return cls(
            mean=mean, p50=p50, p99=p99, max=max(s for s, n in tokens_by_staleness.items() if n)
        )


def _weighted_quantile(histogram: Mapping[int, int], total: int, q: float) -> int:
    rank, seen = math.ceil(q * total), 0
    for value in sorted(histogram):
        seen += histogram[value]
        if seen >= rank:
            return value
    raise AssertionError(f"histogram of {seen} tokens, expected {total}")


def is_trained(sample: Sample) -> bool:
    """Does the sample carry any loss?"""
    return (
        not sample.remove_sample
        and sample.status is not Status.FAILED
        and sample.effective_response_length > 0
    )


def tokens_by_staleness(samples: Iterable[Sample], policy_version: int) -> Counter[int]:
    """Trained tokens (loss mask 1, sample not removed) by `policy_version` minus the version that
    sampled them."""
    counts: Counter[int] = Counter()
    for sample in filter(is_trained, samples):
        for version, start, end in sample.weight_versions:
            # not sum(): out of the buffer the mask is a uint8 array, whose scalars would wrap at
            # 256
            num = (
                end - start
                if sample.loss_mask is None
                else int(np.count_nonzero(sample.loss_mask[start:end]))
            )
            counts[policy_version - int(version)] += num
    return +counts  # drops spans without a trained token


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferFill:
    """The replay buffer when the rollout was consumed, in groups."""

    ready: int  # generated and scored, waiting for the learner
    pending: int  # admitted, still generating
    capacity: int  # the admission window, (K + 1) * P
    num_bytes: int = 0  # of the waiting groups


def train_record(
    *,
    rollout_id: int,
    policy_version: int,
    groups: Sequence[Group],
    result: StepResult,
    staleness_bound: int,
    lap: Lap,
    wall_seconds: float,
    buffer: BufferFill | None = None,
    reward_key: str | None = None,
    lengths_trained: Mapping[int, int] | None = None,
    lengths_removed: Mapping[int, int] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Record:
    """The row of one rollout. The learner's metrics are all in it (its `seconds` as
    `step_seconds`).

    `policy_version` is the learner's at consumption; `wall_seconds` counts from the start of the
    run. `tokens_per_second` is response tokens of this rollout over the seconds since the previous
    record.
    `lengths_trained`, `lengths_removed` (response tokens -> samples, since the start): what a
    --stale-policy trained on and what it removed."""
    samples = [sample for group in groups for sample in group.samples]
    learner = {
        k: v for k, v in result.metrics.items() if k != "seconds" and not k.startswith(RATIO_BIN)
    }
    by_staleness = tokens_by_staleness(samples, policy_version)
    lengths = _lengths(samples)
    return {
        **learner,
        "kind": "train",
        "rollout_id": rollout_id,
        "policy_version": policy_version,
        **_rewards(groups, reward_key),
        "loss": result.metrics.get("loss"),
        "grad_norm": result.metrics.get("grad_norm"),
        "ess_fraction": result.metrics.get("ess_fraction"),
        "kl_rollout_old": result.metrics.get("kl_rollout_old"),
        "num_groups": len(groups),
        "num_groups_replayed": sum(group.times_sampled > 1 for group in groups),
        "num_samples": sum(map(is_trained, samples)),
        "num_samples_untrained": sum(not is_trained(sample) for sample in samples),
        **lengths,
        **{f"staleness_{k}": v for k, v in asdict(Staleness.of(by_staleness)).items()},
        "staleness_bound": staleness_bound,
        **_beyond(groups, policy_version, staleness_bound),
        "generation_idle_fraction": lap.generation_idle_fraction,
        "trainer_idle_fraction": lap.trainer_idle_fraction,
        "interval_seconds": lap.seconds,
        "step_seconds": result.metrics.get("seconds"),
        "tokens_per_second": lengths["num_response_tokens"] / lap.seconds
        if lap.seconds > 0
        else None,
        **_buffer(buffer),
        **_removed(lengths_trained, lengths_removed),
        "wall_seconds": wall_seconds,
        "histograms": _histograms(samples, by_staleness, result.metrics),
        **(extra or {}),
    }


def _rewards(groups: Sequence[Group], key: str | None) -> Record:
    """The statistics over rollouts: of every scored sample whose reward is, or has, a number, those
    of one rollout (fan-out) by their mean. A group of equal rewards teaches nothing and is
    counted."""
    by_group = [_rewards_of_rollouts(group, key) for group in groups]
    rewards = [r for group in by_group for r in group]
    if not rewards:
        names = ("reward_mean", "reward_std", "reward_min", "reward_max", "zero_std_fraction")
        return dict.fromkeys(names)
    mean = math.fsum(rewards) / len(rewards)
    variance = math.fsum((r - mean) ** 2 for r in rewards) / len(rewards)
    flat = sum(1 for group in by_group if group and max(group) == min(group))
    return {
        "reward_mean": mean,
        "reward_std": math.sqrt(variance),
        "reward_min": min(rewards),
        "reward_max": max(rewards),
        "zero_std_fraction": flat / len(by_group),
    }


def _rewards_of_rollouts(group: Group, key: str | None) -> list[float]:
    scored: dict[int, list[float]] = {}
    for rollout, s in zip(rollout_ids(group.samples).tolist(), group.samples, strict=True):
        number = None if s.status is Status.FAILED else s.reward_number(key)
        if number is not None:
            scored.setdefault(rollout, []).append(number)
    return [math.fsum(rewards) / len(rewards) for rewards in scored.values()]


def _beyond(groups: Sequence[Group], policy_version: int, bound: int) -> Record:
    """Groups with a trained token beyond the bound, and those of them that a crash excuses."""
    beyond = [
        group
        for group in groups
        if max(tokens_by_staleness(group.samples, policy_version), default=0) > bound
    ]
    return {
        "num_groups_beyond_bound": len(beyond),
        "num_groups_beyond_bound_recalled": sum(group.recalled for group in beyond),
    }


def _histograms(
    samples: Sequence[Sample], by_staleness: Mapping[int, int], metrics: Mapping[str, float]
) -> Record:
    """The histograms of staleness and rollout_log_ratio count trained tokens, that of
    response_length counts trained samples."""
    found = {
        "staleness": Histogram.of_integers(by_staleness),
        "response_length": Histogram.of_integers(
            Counter(s.response_length for s in samples if is_trained(s))
        ),
        "rollout_log_ratio": Histogram.of_log_ratio(metrics),
    }
    return {name: histogram.to_dict() for name, histogram in found.items() if histogram}


def _lengths(samples: Sequence[Sample]) -> Record:
    """Token counts over the trained samples: all tokens, response tokens, tokens with loss; and how
    long responses are."""
    trained = [s for s in samples if is_trained(s)]
    count = max(len(trained), 1)
    response = sum(s.response_length for s in trained)
    return {
        "num_tokens": sum(len(s.tokens) for s in trained),
        "num_response_tokens": response,
        "num_loss_tokens": sum(s.effective_response_length for s in trained),
        "response_length_mean": response / count,
        "response_length_max": max((s.response_length for s in trained), default=0),
        "truncated_fraction": sum(s.status is Status.TRUNCATED for s in trained) / count,
    }


def _buffer(fill: BufferFill | None) -> Record:
    if fill is None:
        return {}
    return {
        "buffer_ready": fill.ready,
        "buffer_pending": fill.pending,
        "buffer_capacity": fill.capacity,
        "buffer_fill": fill.ready / fill.capacity if fill.capacity else 0.0,
        "buffer_bytes": fill.num_bytes,
    }


def _removed(trained: Mapping[int, int] | None, removed: Mapping[int, int] | None) -> Record:
    """How long the responses are that were removed as late, beside those trained on: slow groups
    are long ones, and the bias of removing them is to be seen."""
    if not removed:
        return {}
    out: Record = {"samples_removed_stale": sum(removed.values())}
    for name, lengths in (("trained", trained or {}), ("removed", removed)):
        total = sum(lengths.values())
        if total:
            out[f"length_{name}_mean"] = sum(n * count for n, count in lengths.items()) / total
            out.update(
                {
                    f"length_{name}_p{round(100 * q)}": _weighted_quantile(lengths, total, q)
                    for q in (0.5, 0.95)
                }
            )
    return out


def push_record(result: PushResult, *, rollout_id: int) -> Record:
    """One completed push; `rollout_id` is the rollout after which it was due."""
    return {"kind": "push", "rollout_id": rollout_id, **asdict(result)}


def eval_record(result: EvalResult) -> Record:
    """One evaluated data set. pass@k is `pass_at_K`, `pass_at_K_low` and `pass_at_K_high`."""
    record = {"kind": "eval", **asdict(result)}
    for k, estimate in record.pop("pass_at_k").items():
        name = f"pass_at_{k}"
        record |= {name: estimate["mean"]}
        record |= {f"{name}_low": estimate["low"], f"{name}_high": estimate["high"]}
    return record
