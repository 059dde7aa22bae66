"""The report's charts: which fields they show, and how.

The x axis is the number of rollouts trained, except for pushes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.report.summary import REWARD_WINDOW, History, points, trailing_mean, values
from pipeline.report.svg import Chart, Series

# field, title: drawn only where the learner reported it
_LEARNER = (
    ("loss", "loss"),
    ("grad_norm", "gradient norm"),
    ("entropy", "entropy (nats a token)"),
    ("kl_rollout_old", "KL(rollout ‖ old)"),
    ("kl_old_new", "KL(old ‖ new)"),
    ("ess_fraction", "effective sample size (share)"),
    ("clip_fraction", "clipped tokens (share)"),
    ("ratio_max", "largest importance ratio"),
    ("tis_clip_fraction", "TIS-clipped tokens (share)"),
    ("lr", "learning rate"),
)


def course_chart(history: History) -> Chart:
    """Mean rewards, those of evaluations too; of a supervised run its losses."""
    raw = points(history.train, history.followed)
    smooth = list(zip([x for x, _ in raw], trailing_mean([y for _, y in raw]), strict=True))
    series = [
        Series(label="each rollout", points=raw, style="dots"),
        Series(label=f"mean of {REWARD_WINDOW}", points=smooth),
    ]
    if history.is_supervised:
        return _over_rollouts("loss", series, height=276)
    series += _evaluations(history)
    inside = all(0 <= y <= 1 for s in series for _, y in s.points)
    return _over_rollouts("mean reward", series, height=276, y_range=(0, 1) if inside else None)


def _evaluations(history: History) -> Iterator[Series]:
    evals = [r for r in history.evals if r.get("reward_mean") is not None]
    for place, name in enumerate(dict.fromkeys(str(r.get("name")) for r in evals)):
        own = [(r["rollout_id"], r["reward_mean"]) for r in evals if str(r.get("name")) == name]
        yield Series(label=f"eval: {name}", points=own, color=2 + place % 3, style="marks")


def staleness_chart(history: History) -> Chart:
    series = [
        _line(history, "max", "staleness_max", color=2, style="step", longest="max"),
        _line(history, "p99", "staleness_p99", color=4, style="thin", longest="max"),
        _line(history, "mean", "staleness_mean"),
        _line(history, "bound", "staleness_bound", color=0, style="dashed", longest="max"),
    ]
    # room above, so that the bound is not the frame
    top = 1 + max(values(history.train, "staleness_bound"), default=0)
    return _over_rollouts(
        "staleness (policy versions)", series, height=176, y_range=(0, top), whole=True
    )


def idle_charts(history: History) -> list[Chart]:
    shares = [
        _line(history, "generators", "generation_idle_fraction", color=2),
        _line(history, "trainer", "trainer_idle_fraction"),
    ]
    times = [
        _line(history, "a rollout", "interval_seconds", color=0),
        _line(history, "its step", "step_seconds", color=3),
    ]
    return [
        _over_rollouts("share of time idle", shares, y_range=(0, 1), percent=True),
        _over_rollouts("seconds", times, y_range=(0, 0.01)),
    ]


def push_chart(history: History) -> Chart:
    rows = [r for r in history.pushes if r.get("policy_version") is not None]
    series = [
        Series(
            label=label,
            points=[(r["policy_version"], r[name]) for r in rows if r.get(name) is not None],
            color=color,
            longest="max",
        )
        for label, name, color in (
            ("whole push", "seconds", 1),
            ("longest pause of an engine", "stall_seconds", 2),
        )
    ]
    return Chart(
        series=series, x_label="policy version", y_label="seconds", height=156, y_range=(0, 0.01)
    )


def learner_charts(history: History) -> list[Chart]:
    """Without what `course_chart` shows."""
    drawn = [
        _over_rollouts(title, [_line(history, name, name)])
        for name, title in _LEARNER
        if values(history.train, name) and name != history.followed
    ]
    return drawn or [_over_rollouts("learner metrics", [])]


def throughput_charts(history: History) -> list[Chart]:
    speed = _line(history, "response tokens", "tokens_per_second")
    lengths = [
        _line(history, "mean", "response_length_mean"),
        _line(history, "longest", "response_length_max", color=2, style="thin", longest="max"),
    ]
    return [
        _over_rollouts("trained tokens a second", [speed], y_range=(0, 1)),
        _over_rollouts("response length (tokens)", lengths, y_range=(0, 1)),
    ]


def pool_charts(history: History) -> list[Chart]:
    groups = [
        _line(history, "ready", "buffer_ready", color=3),
        _line(history, "generating", "buffer_pending", color=4),
        _line(history, "window", "buffer_capacity", color=0, style="dashed"),
    ]
    shares = [_line(history, "truncated responses", "truncated_fraction", color=2)]
    if not history.is_supervised:
        shares.append(_line(history, "groups of equal reward", "zero_std_fraction"))
    return [
        _over_rollouts("replay buffer (groups)", groups, y_range=(0, 1)),
        _over_rollouts("share", shares, y_range=(0, 1), percent=True),
    ]


def _line(history: History, label: str, field: str, **look: Any) -> Series:
    """A field of the train records. `look`: as Series has it."""
    return Series(label=label, points=points(history.train, field), **look)


def _over_rollouts(title: str, series: Sequence[Series], **look: Any) -> Chart:
    """`look`: as Chart has it."""
    return Chart(series=series, x_label="rollouts trained", y_label=title, **look)
