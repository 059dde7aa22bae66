"""The run in numbers: what metrics.jsonl says, read back and summed up."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.agent_counts import AGENT_COUNTERS
from pipeline.run.record_file import current_records, read_records
from pipeline.run.rundir import RunDir
from pipeline.run.samples import last_samples
from pipeline.run.utilisation import counter_total

REWARD_WINDOW = 5  # rollouts that reward_first, reward_last and the trailing mean average over
REWARD_GOAL = 0.9
SAMPLED_ROLLOUTS = 3  # the last ones, whose samples the report shows
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The records of one run that hold now (what a resume rolled back is not in it), by kind, in
    order."""

    name: str
    train: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    pushes: list[dict[str, Any]]
    engines: list[dict[str, Any]]
    waits: list[dict[str, Any]]
    counters: list[dict[str, Any]]  # rows with the run's counts: of training, then the last waits
    config_text: str = ""
    # of the last rollouts, the newest first: records of kind sample
    samples: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def num_rollout(self) -> int | None:
        """How many rollouts the run was asked for; None where the configuration does not say."""
        value = self.flag("num-rollout")
        return int(value) if value is not None and value.isdigit() else None

    @property
    def is_supervised(self) -> bool:
        """Was the run trained on given answers? Then its loss says how it went, not its rewards."""
        return self.flag("loss-type") == "sft_loss"

    @property
    def followed(self) -> str:
        """The field of train records that says how the run goes."""
        return "loss" if self.is_supervised else "reward_mean"

    def flag(self, name: str) -> str | None:
        """The value of a flag in config.yaml (a list of `- --flag value` lines)."""
        for line in self.config_text.splitlines():
            words = line.strip().removeprefix("- ").strip("'\"").split(maxsplit=1)
            if len(words) == 2 and words[0] == f"--{name}":
                return words[1].strip("'\"")
        return None


def load_history(run_dir: str | Path) -> History:
    """Reads metrics.jsonl and config.yaml; either may be missing, and the last line of
    metrics.jsonl may be half written."""
    run = RunDir(Path(run_dir).resolve())
    by_kind: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "push": [], "engine": []}
    last_waits: list[dict[str, Any]] = []
    for record in current_records(read_records(run.metrics)):
        by_kind.setdefault(record["kind"], []).append(record)
        if record["kind"] in ("train", "wait"):
            last_waits = [*last_waits, record] if record["kind"] == "wait" else []
    text = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    return History(
        name=run.name,
        train=by_kind["train"],
        evals=by_kind["eval"],
        pushes=by_kind["push"],
        engines=by_kind["engine"],
        waits=by_kind.get("wait", []),
        counters=[*by_kind["train"], *last_waits],
        config_text=text,
        samples=last_samples(run.samples, SAMPLED_ROLLOUTS),
    )


# What a --stale-policy removed against what was trained on: in a summary when anything was.
REMOVED = (
    "samples_removed_stale",
    *(f"length_{of}_{what}" for of in ("trained", "removed") for what in ("mean", "p50", "p95")),
)


def summarise(history: History, *, wall_seconds: float | None = None) -> dict[str, Any]:
    """The content of summary.json. A mean of nothing is None; a count of nothing 0.

    reward_first, reward_last: means over the first and last 5 rollouts (of fewer than ten: over
    each half); a supervised run has loss_first and loss_last instead. seconds_to_reward_0_9:
    wall_seconds of the first rollout at which the trailing mean over 5 rollouts (fewer at the
    start) is at least 0.9, where rewards are shares from 0 to 1; None in a supervised run. Idle
    fractions are weighted with the time they cover. `wall_seconds`: of the whole run, closing
    included (default: of the newest record).
    """
    train, pushes = history.train, history.pushes
    everything = [*train, *history.evals, *pushes, *history.engines]
    shares = not history.is_supervised and are_shares(train)
    return {
        "num_rollouts": len(train),
        "final_policy_version": max(
            [0, *values(train, "policy_version"), *values(pushes, "policy_version")]
        ),
        **_course(history),
        "samples_generated": int(counter_total(values(history.counters, "samples_generated"))),
        "samples_trained": sum(values(train, "num_samples")),
        "samples_failed": int(counter_total(values(history.counters, "samples_failed"))),
        "samples_timed_out": int(counter_total(values(history.counters, "samples_timed_out"))),
        **_discarded(history),
        "samples_unjudged": int(counter_total(values(history.counters, "samples_unjudged"))),
        **_agents(history),
        "staleness_max": max(values(train, "staleness_max"), default=None),
        "staleness_bound": max(values(train, "staleness_bound"), default=None),
        **_beyond(train),
        "groups_replayed": sum(values(train, "num_groups_replayed")),
        **{name: train[-1][name] for name in REMOVED if train and name in train[-1]},
        **_empty_steps(train),
        "push_count": len(pushes),
        "push_stall_seconds_p50": median(values(pushes, "stall_seconds")),
        "generation_idle_fraction": weighted(train, "generation_idle_fraction"),
        "trainer_idle_fraction": weighted(train, "trainer_idle_fraction"),
        "wall_seconds": wall_seconds
        if wall_seconds is not None
        else max(values(everything, "wall_seconds"), default=0.0),
        "seconds_to_reward_0_9": seconds_to_reward(train) if shares else None,
        "rollouts_with_equal_rewards": sum(row.get("rewards_equal") is True for row in train),
        **_learner(train),
    }


def _beyond(train: Sequence[Row]) -> dict[str, int]:
    """Groups beyond the staleness bound, and those of them that were recalled after a crash, which
    are exempt: in a summary when there was one."""
    found = {
        f"groups_{what}": sum(values(train, f"num_groups_{what}"))
        for what in ("beyond_bound", "beyond_bound_recalled")
    }
    return found if found["groups_beyond_bound"] else {}


def _course(history: History) -> dict[str, float | None]:
    followed = values(history.train, history.followed)
    window = reward_window(len(followed))
    ends = {"first": mean(followed[:window]), "last": mean(followed[-window:])}
    rewards = dict.fromkeys(("reward_first", "reward_last"))
    name = history.followed.removesuffix("_mean")
    return {**rewards, **{f"{name}_{end}": value for end, value in ends.items()}}


def _agents(history: History) -> dict[str, int]:
    """What agents did, in a run that had some."""
    counts = {name: int(counter_total(values(history.counters, name))) for name in AGENT_COUNTERS}
    return counts if any(counts.values()) else {}


def _discarded(history: History) -> dict[str, int]:
    """Samples that were generated to their end and never trained on: of a group that a filter
    turned down or that was given up, taken out by --buffer-filter-path, removed for their age, or
    without any loss when their rollout was taken."""
    train, counters = history.train, history.counters
    causes = {
        "samples_discarded_before_buffer": int(
            counter_total(values(counters, "samples_discarded"))
        ),
        "samples_discarded_stale": int(counter_total(values(train, "samples_removed_stale"))),
        "samples_discarded_untrained": sum(values(train, "num_samples_untrained")),
    }
    filtered = int(counter_total(values(counters, "samples_removed_by_buffer_filter")))
    if filtered:
        causes["samples_discarded_by_buffer_filter"] = filtered
    return {"samples_discarded": sum(causes.values()), **causes}


def _empty_steps(train: Sequence[Row]) -> dict[str, int]:
    """Optimizer steps that no sample was trained in: in a summary when there was one."""
    count = sum(values(train, "num_empty_steps"))
    return {"num_empty_steps": count} if count else {}


def _learner(train: Sequence[Row]) -> dict[str, Any]:
    """What a learner with a model says of itself: memory at its peak, its pace, and how far it is
    from the engines on the same weights."""
    on_policy = [row for row in train if row.get("staleness_max") == 0]
    found = {
        "peak_memory_bytes": max(values(train, "peak_memory_bytes"), default=None),
        "tokens_per_second_per_device_p50": median(values(train, "tokens_per_second_per_device")),
        "model_tflops_p50": median(values(train, "model_tflops")),
        "mfu_p50": median(values(train, "mfu")),
        "on_policy_logprob_abs_diff_mean": mean(
            values(on_policy, "train_rollout_logprob_abs_diff")
        ),
        "on_policy_logprob_abs_diff_max": max(
            values(on_policy, "train_rollout_logprob_abs_diff_max"), default=None
        ),
    }
    return {name: value for name, value in found.items() if value is not None}


def write_summary(run_dir: str | Path, *, wall_seconds: float | None = None) -> dict[str, Any]:
    """Writes RUN_DIR/summary.json and returns its content."""
    summary = summarise(load_history(run_dir), wall_seconds=wall_seconds)
    replace_text(
        RunDir(Path(run_dir)).summary, json.dumps(summary, indent=2, allow_nan=False) + "\n"
    )
    return summary


def reward_window(num_rollouts: int) -> int:
    """Rollouts that count as the first ones, and as the last: never the same twice, but for a
    single one."""
    return max(1, min(REWARD_WINDOW, num_rollouts // 2))


def are_shares(train: Sequence[Row]) -> bool:
    """Do the rewards go from 0 to 1? Only then does a goal of 0.9 mean anything. Records of older
    runs have means only."""
    lowest = [*values(train, "reward_min"), *values(train, "reward_mean")]
    highest = [*values(train, "reward_max"), *values(train, "reward_mean")]
    return min(lowest, default=0.0) >= 0 and max(highest, default=1.0) <= 1


def seconds_to_reward(train: Sequence[Row], goal: float = REWARD_GOAL) -> float | None:
    rows = [r for r in train if r.get("reward_mean") is not None]
    for row, reward in zip(rows, trailing_mean(values(rows, "reward_mean")), strict=True):
        if reward >= goal:
            return row.get("wall_seconds")
    return None


def trailing_mean(numbers: Sequence[float], window: int = REWARD_WINDOW) -> list[float]:
    """The mean of each number and the `window - 1` before it (fewer at the start)."""
    return [statistics.fmean(numbers[max(0, i - window + 1) : i + 1]) for i in range(len(numbers))]


def values(rows: Iterable[Row], name: str) -> list[Any]:
    """The field of every row that has it."""
    return [row[name] for row in rows if row.get(name) is not None]


def points(rows: Iterable[Row], name: str) -> list[tuple[float, float]]:
    """(rollouts trained, value) of every row that has the field."""
    return [(row["rollout_id"] + 1, row[name]) for row in rows if row.get(name) is not None]


def mean(numbers: Sequence[float]) -> float | None:
    return statistics.fmean(numbers) if numbers else None


def median(numbers: Sequence[float]) -> float | None:
    return statistics.median(numbers) if numbers else None


def weighted(rows: Iterable[Row], name: str) -> float | None:
    """The mean of a share, each row weighted with the seconds that it covers."""
    pairs = [
        (row[name], row.get("interval_seconds") or 0.0) for row in rows if row.get(name) is not None
    ]
    total = sum(weight for _, weight in pairs)
    if total == 0:
        return mean([share for share, _ in pairs])
    return sum(share * weight for share, weight in pairs) / total


def replace_text(path: Path, text: str) -> None:
    """Replaces the file in one step: readers see the old one or the new one, never half of it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
