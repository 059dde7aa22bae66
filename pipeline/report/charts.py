"""The report's charts: which fields, drawn how.

The x axis is the number of rollouts trained, except for pushes.
"""

from __future__ import annotations

from pipeline.report.summary import REWARD_WINDOW, History, points, trailing_mean, values
from pipeline.report.svg import Chart, Series

_ROLLOUTS = "rollouts trained"

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


def reward_chart(history: History) -> Chart:
    raw = points(history.train, "reward_mean")
    smooth = list(zip([x for x, _ in raw], trailing_mean([y for _, y in raw]), strict=True))
    series = [
        Series(label="each rollout", points=raw, style="dots"),
        Series(label=f"mean of {REWARD_WINDOW}", points=smooth),
    ]
    evals = [r for r in history.evals if r.get("reward_mean") is not None]
    for place, name in enumerate(dict.fromkeys(str(r.get("name")) for r in evals)):
        own = [(r["rollout_id"], r["reward_mean"]) for r in evals if str(r.get("name")) == name]
        series.append(Series(label=f"eval: {name}", points=own, color=2 + place % 3, style="marks"))
    inside = all(0 <= y <= 1 for s in series for _, y in s.points)
    return Chart(
        series=series,
        x_label=_ROLLOUTS,
        y_label="mean reward",
        height=276,
        y_range=(0, 1) if inside else None,
    )


def staleness_chart(history: History) -> Chart:
    series = [
        Series(
            label="max",
            points=points(history.train, "staleness_max"),
            color=2,
            style="step",
            longest="max",
        ),
        Series(
            label="p99",
            points=points(history.train, "staleness_p99"),
            color=4,
            style="thin",
            longest="max",
        ),
        Series(label="mean", points=points(history.train, "staleness_mean"), color=1),
        Series(
            label="bound",
            points=points(history.train, "staleness_bound"),
            color=0,
            style="dashed",
            longest="max",
        ),
    ]
    # room above, so that the bound is not the frame
    top = 1 + max(values(history.train, "staleness_bound"), default=0)
    return Chart(
        series=series,
        x_label=_ROLLOUTS,
        y_label="staleness (policy versions)",
        height=176,
        y_range=(0, top),
        whole=True,
    )


def idle_charts(history: History) -> list[Chart]:
    shares = [
        Series(
            label="generators", points=points(history.train, "generation_idle_fraction"), color=2
        ),
        Series(label="trainer", points=points(history.train, "trainer_idle_fraction"), color=1),
    ]
    times = [
        Series(label="a rollout", points=points(history.train, "interval_seconds"), color=0),
        Series(label="its step", points=points(history.train, "step_seconds"), color=3),
    ]
    return [
        Chart(
            series=shares,
            x_label=_ROLLOUTS,
            y_label="share of time idle",
            y_range=(0, 1),
            percent=True,
        ),
        Chart(series=times, x_label=_ROLLOUTS, y_label="seconds", y_range=(0, 0.01)),
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
    present = [(name, title) for name, title in _LEARNER if values(history.train, name)]
    if not present:
        return [Chart(series=[], x_label=_ROLLOUTS, y_label="learner metrics")]
    return [
        Chart(
            series=[Series(label=name, points=points(history.train, name), color=1)],
            x_label=_ROLLOUTS,
            y_label=title,
        )
        for name, title in present
    ]


def throughput_charts(history: History) -> list[Chart]:
    lengths = [
        Series(label="mean", points=points(history.train, "response_length_mean"), color=1),
        Series(
            label="longest",
            points=points(history.train, "response_length_max"),
            color=2,
            style="thin",
            longest="max",
        ),
    ]
    return [
        Chart(
            series=[
                Series(label="response tokens", points=points(history.train, "tokens_per_second"))
            ],
            x_label=_ROLLOUTS,
            y_label="trained tokens a second",
            y_range=(0, 1),
        ),
        Chart(
            series=lengths, x_label=_ROLLOUTS, y_label="response length (tokens)", y_range=(0, 1)
        ),
    ]


def pool_charts(history: History) -> list[Chart]:
    groups = [
        Series(label="ready", points=points(history.train, "buffer_ready"), color=3),
        Series(label="generating", points=points(history.train, "buffer_pending"), color=4),
        Series(
            label="window", points=points(history.train, "buffer_capacity"), color=0, style="dashed"
        ),
    ]
    shares = [
        Series(
            label="truncated responses", points=points(history.train, "truncated_fraction"), color=2
        ),
        Series(
            label="groups of equal reward",
            points=points(history.train, "zero_std_fraction"),
            color=1,
        ),
    ]
    return [
        Chart(series=groups, x_label=_ROLLOUTS, y_label="replay buffer (groups)", y_range=(0, 1)),
        Chart(series=shares, x_label=_ROLLOUTS, y_label="share", y_range=(0, 1), percent=True),
    ]
