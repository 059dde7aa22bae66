"""Rules about what runs ahead of what, and what a rollout is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator

from configs.schema import Config


def staleness(config: Config) -> Iterator[str]:
    k, n, s = (
        config.async_.async_buffer_size,
        config.async_.update_weights_interval,
        config.async_.max_staleness,
    )
    if config.cluster.colocate and k > 0:
        yield (
            f"--colocate with --async-buffer-size {k}: learner and engines that share devices take"
            " turns, so nothing can be generated ahead. Drop --colocate to overlap them, or set"
            " --async-buffer-size 0"
        )
    if s is not None and k > s * n:
        yield (
            f"--async-buffer-size {k} with --max-staleness {s} and --update-weights-interval {n}:"
            f" {k} rollouts generated ahead are up to {-(-k // n)} versions old when trained on."
            f" Raise --max-staleness to {-(-k // n)}, or lower --async-buffer-size to {s * n}"
        )


def fixed_staleness(config: Config) -> Iterator[str]:
    """What would make a token younger than K versions, or a rollout one of several ages."""
    a, r = config.async_, config.rollout
    if not a.fixed_staleness:
        return
    k = a.async_buffer_size
    wrong = {
        f"--update-weights-interval {a.update_weights_interval}": (
            a.update_weights_interval != 1,
            "tokens would be of different ages within a rollout; it must be 1",
        ),
        f"--max-staleness {a.max_staleness}": (
            a.max_staleness not in (None, k),
            f"the staleness is --async-buffer-size, {k}",
        ),
        f"--buffer-selector {a.buffer_selector}": (
            a.buffer_selector != "deadline",
            "rollouts are trained in the order of their admission",
        ),
        f"--stale-policy {a.stale_policy}": (a.stale_policy != "wait", "nothing comes too late"),
        f"--max-times-sampled {a.max_times_sampled}": (
            a.max_times_sampled != 1,
            "a replayed group is older every time",
        ),
        "--buffer-filter-path": (
            a.buffer_filter_path is not None,
            "the learner would take groups out of turn",
        ),
        "--dynamic-sampling-filter-path": (
            r.dynamic_sampling_filter_path is not None,
            "what replaces a filtered group is younger",
        ),
        "--rollout-function-path": (
            r.rollout_function_path is not None,
            "it generates before groups are admitted",
        ),
        "--use-fault-tolerance": (
            config.cluster.use_fault_tolerance,
            "what is kept when the learner is restored is older by the versions that were lost",
        ),
    }
    for flag, (given, why) in wrong.items():
        if given:
            yield f"{flag} with --fixed-staleness: {why}. Drop one of the two"


def replay(config: Config) -> Iterator[str]:
    a, groups = config.async_, config.rollout.rollout_batch_size
    most, each = a.max_times_sampled, a.samples_of_a_group
    if each > most:
        yield (
            f"--samples-per-insert {each:g} with --max-times-sampled {most}: a group cannot be"
            f" trained on {each:g} times on average. Raise --max-times-sampled to {math.ceil(each)}"
        )
    elif groups % each or groups < each:
        said = (
            f"--samples-per-insert {a.samples_per_insert:g}"
            if a.samples_per_insert
            else f"--max-times-sampled {most}"
        )
        fits = ", ".join(
            f"{groups / fresh:g}" for fresh in range(groups, 0, -1) if groups / fresh <= most
        )
        yield (
            f"{said} with --rollout-batch-size {groups}: {groups / each:g} fresh groups a rollout,"
            f" expected a whole number. With these two, --samples-per-insert may be {fits}"
        )
    if most > 1 and config.staleness_bound == 0:
        yield (
            f"--max-times-sampled {most} with --max-staleness 0: every later rollout has newer"
            " weights, nothing may be replayed. Raise --max-staleness, or push less often"
            f" (--update-weights-interval {most})"
        )
    first = min(a.async_buffer_size + 1, config.run.num_rollout) * config.num_fresh_groups
    if a.min_size_to_sample and a.min_size_to_sample > first:
        yield (
            f"--min-size-to-sample {a.min_size_to_sample}: with --async-buffer-size"
            f" {a.async_buffer_size} only {first} groups are generated before the first rollout is"
            " trained on. Lower it, or raise --async-buffer-size"
        )
    if a.buffer_priority_path and a.buffer_selector != "prioritized":
        yield (
            f"--buffer-priority-path with --buffer-selector {a.buffer_selector}: only prioritized"
            " asks for it. Drop one, or set that"
        )
    if a.stale_policy != "wait" and a.async_buffer_size == 0:
        yield (
            f"--stale-policy {a.stale_policy} with --async-buffer-size 0: a synchronous rollout"
            " consists of the groups it waits for. Drop it, or set --async-buffer-size 1 or more"
        )
