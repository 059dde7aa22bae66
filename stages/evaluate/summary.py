"""What an evaluation's samples say: means, how sure they are, and which weights made them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pipeline.core.types import Estimate, EvalResult, Sample, Status
from stages.evaluate.estimates import estimate, pass_at_k

NO_VERSION = -1  # of an evaluation without a single generated token


def is_good(sample: Sample) -> bool:
    return sample.status in (Status.COMPLETED, Status.TRUNCATED) and sample.reward is not None


def summarise(
    name: str,
    rollout_id: int,
    samples: Sequence[Sample],
    seconds: float,
    *,
    reward_key: str | None = None,
    pass_reward: float = 1.0,
) -> EvalResult:
    """Means over the samples that did not fail, of rewards over those that are or have a number.
    Where there is none of them, nothing was measured: an error.

    A sample with at least `pass_reward` is right, for pass@k."""
    good = [s for s in samples if is_good(s)]
    first = next((s.error for s in samples if s.error), "no reward")
    all_good = len(good) == len(samples)
    by_prompt = _rewards(good, reward_key)
    rewards = [reward for of_prompt in by_prompt for reward in of_prompt]
    mean = estimate(by_prompt)
    versions = [span.version for s in good for span in s.weight_versions]
    return EvalResult(
        name=name,
        rollout_id=rollout_id,
        policy_version_min=min(versions, default=NO_VERSION),
        policy_version_max=max(versions, default=NO_VERSION),
        reward_mean=mean.mean if mean else None,
        reward_mean_low=mean.low if mean else None,
        reward_mean_high=mean.high if mean else None,
        num_prompts=len(by_prompt),
        pass_at_k=_passes(by_prompt, pass_reward),
        num_samples=len(samples),
        num_failed=len(samples) - len(good),
        response_length_mean=mean_of([s.response_length for s in good]),
        truncated_fraction=mean_of([s.status is Status.TRUNCATED for s in good]),
        seconds=seconds,
        error=_error(len(samples), good, rewards, first),
        first_failure=first if good and not all_good else None,
    )


def _rewards(samples: Sequence[Sample], key: str | None) -> list[list[float]]:
    """The numbers of each prompt that has any."""
    by_prompt: defaultdict[int | None, list[float]] = defaultdict(list)
    for sample in samples:
        number = sample.reward_number(key)
        if number is not None:
            by_prompt[sample.group_index].append(number)
    return list(by_prompt.values())


def _passes(by_prompt: Sequence[Sequence[float]], pass_reward: float) -> Mapping[int, Estimate]:
    """pass@k for 1, 2, 4, ... and for as many samples as a prompt has, each over the prompts that
    have so many: those of which some failed may have fewer."""
    counts = [(len(rewards), sum(r >= pass_reward for r in rewards)) for rewards in by_prompt]
    most = max((num for num, _ in counts), default=0)
    out: dict[int, Estimate] = {}
    for k in sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most} - {0}):
        found = estimate([[pass_at_k(num, right, k)] for num, right in counts if num >= k])
        assert found is not None
        out[k] = found
    return out


def _error(
    num_samples: int, good: Sequence[Sample], rewards: Sequence[float], first_failure: str
) -> str | None:
    if not good:
        return f"all {num_samples} samples failed, the first with: {first_failure}"
    if not rewards:
        return (
            f"no reward has a number, the first is {good[0].reward!r:.80}: set --eval-reward-key to"
            " the entry to measure"
        )
    return None


def mean_of(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
