"""reward.png: the reward of every rollout, and the staleness it was trained at. matplotlib is
imported here only, when asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.report.summary import (
    REWARD_GOAL,
    REWARD_WINDOW,
    History,
    points,
    trailing_mean,
    values,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE, _GREEN, _GREY, _INK = "#2463c4", "#d9731a", "#17855a", "#9aa4b2", "#1f2733"


def write_reward_png(history: History, path: Path) -> None:
    """1600 x 1000 pixels. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=200, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)  # no pyplot: no global state, no display
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _reward(upper, history)
    _staleness(lower, history)
    for axes in (upper, lower):
        _dress(axes)
    figure.suptitle(
        f"{history.name}: reward over {len(history.train)} rollouts",
        x=0.01,
        ha="left",
        color=_INK,
        fontsize=12,
        weight="bold",
    )
    new = path.with_name(f".{os.getpid()}.{path.name}")
    canvas.print_png(str(new))
    new.replace(path)


def _reward(axes: Axes, history: History) -> None:
    x, y = columns(points(history.train, "reward_mean"))
    axes.plot(
        x, y, ".", color=_BLUE, alpha=0.5, markersize=6, markeredgewidth=0, label="each rollout"
    )
    axes.plot(x, trailing_mean(y), "-", color=_BLUE, linewidth=2, label=f"mean of {REWARD_WINDOW}")
    evals = [r for r in history.evals if r.get("reward_mean") is not None]
    for name, color, marker in zip(
        dict.fromkeys(r["name"] for r in evals),
        (_ORANGE, _GREEN, _INK) * 9,
        "Ds^ovP*X<>" * 3,
        strict=False,
    ):
        own = [r for r in evals if r["name"] == name]
        axes.plot(
            [r["rollout_id"] for r in own],
            values(own, "reward_mean"),
            marker,
            color=color,
            markersize=6,
            label=f"eval: {name}",
        )
    if not y or (min(y) >= 0 and max(y) <= 1):
        axes.set_ylim(-0.03, 1.03)
        axes.axhline(REWARD_GOAL, color=_GREY, linewidth=0.8, linestyle=(0, (4, 4)))
    axes.set_ylabel("mean reward")
    if y or evals:
        axes.legend(loc="best", frameon=False, fontsize=8)
    else:
        axes.text(
            0.5,
            0.5,
            "no rollout was trained",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=_GREY,
        )


def columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _staleness(axes: Axes, history: History) -> None:
    from matplotlib.ticker import MaxNLocator

    worst, average = points(history.train, "staleness_max"), points(history.train, "staleness_mean")
    axes.fill_between(
        *columns(worst), step="mid", color=_ORANGE, alpha=0.25, linewidth=0, label="max"
    )
    axes.plot(*columns(average), color=_ORANGE, linewidth=1.5, label="mean")
    bounds = values(history.train, "staleness_bound")
    if bounds:
        axes.axhline(max(bounds), color=_INK, linewidth=1, linestyle="--", label="bound")
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 0.98),
            borderaxespad=0,
            frameon=False,
            fontsize=8,
            ncols=3,
        )
    axes.set_ylim(0, max([1, *bounds, *columns(worst)[1]]) * 1.15)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.set_ylabel("staleness")
    axes.set_xlabel("rollouts trained")


def _dress(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.grid(axis="y", color="#e6eaf0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.yaxis.label.set_color(_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
