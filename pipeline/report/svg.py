"""Line charts as SVG: no script needed to read them, in the page's palette, light and dark.

A chart is drawn once, in percent of whatever box it is put into, and its text is in pixels: it is
as readable on a phone as on a desk. `figure` puts it into a page, `picture` into a file of its
own."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Literal

# Around the plot, for ticks and axis label: chart.css has the same numbers.
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 36
_MAX_POINTS = 600  # a longer series is drawn, and shown on hover, as the summary of equal stretches
_STYLE = Path(__file__).parent / "chart.css"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """`points`: (x, y) by rising x.

    `color`: 1..4, the page's palette, or 0 for ink. `longest`: how stretches are summed up.
    """

    label: str
    points: Sequence[Point]
    color: int = 1
    style: Literal["line", "thin", "step", "dots", "marks", "dashed"] = "line"
    longest: Literal["mean", "max"] = "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`height`: pixels of the plot. `y_range` is widened to hold the data. `percent`: y is a share;
    `whole`: y ticks are integers."""

    series: Sequence[Series]
    x_label: str
    y_label: str
    height: int = 150
    y_range: tuple[float, float] | None = None
    percent: bool = False
    whole: bool = False

    @property
    def drawn(self) -> list[Series]:
        """The series with points, thinned out."""
        return [replace(s, points=_thin_out(s)) for s in self.series if s.points]


@dataclass(frozen=True, slots=True)
class _Scale:
    """From a value to percent of the box; `down`: the low end is at the bottom."""

    low: float
    high: float
    down: bool = False

    def __call__(self, value: float) -> float:
        share = 100 * (value - self.low) / (self.high - self.low)
        return round(100 - share if self.down else share, 3)


def figure(chart: Chart) -> str:
    """A <figure> with legend; a line saying so where there is nothing to draw."""
    series = chart.drawn
    if not series:
        return f'<p class="empty">{escape(chart.y_label)}: nothing recorded.</p>'
    x, y_ticks, y = _scales(chart, series)
    # what the page's script needs to show values under the pointer
    data = {
        "x": [x.low, x.high],
        "percent": chart.percent,
        "series": [
            {
                "label": s.label,
                "color": s.color,
                "points": [[_short(a), _short(b)] for a, b in s.points],
            }
            for s in series
        ],
    }
    keys = "".join(
        f'<span class="key {s.style}" style="--c:var(--c{s.color})">{escape(s.label)}</span>'
        for s in series
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(chart.y_label)}</b>{keys}</figcaption>'
        f'<svg class="plot" style="height:{chart.height}px" role="img"'
        f' aria-label="{escape(chart.y_label)}" data-chart="{escape(json.dumps(data))}">'
        f"{_plot(chart, series, x, y, y_ticks)}"
        '<line class="guide" y1="0" y2="100%" visibility="hidden"/></svg></figure>'
    )


def picture(title: str, charts: Sequence[Chart], *, width: int = 800) -> str:
    """An SVG file: the charts one below the other, each under its name and legend."""
    at, parts = 50, [f'<text class="title" x="{_LEFT}" y="32">{escape(title)}</text>']
    for chart in charts:
        series = chart.drawn
        parts.append(f'<g transform="translate({_LEFT} {at})">{_legend(chart, series)}</g>')
        at += 18 + _TOP
        box = f'x="{_LEFT}" y="{at}" width="{width - _LEFT - _RIGHT}" height="{chart.height}"'
        if series:
            x, y_ticks, y = _scales(chart, series)
            inside = _plot(chart, series, x, y, y_ticks)
        else:
            inside = '<text class="axis" y="50%">nothing recorded</text>'
        parts.append(f'<svg {box} overflow="visible">{inside}</svg>')
        at += chart.height + _BOTTOM + 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" width="{width}" height="{at}"'
        f' viewBox="0 0 {width} {at}"><style>{_STYLE.read_text(encoding="utf-8")}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )


def _legend(chart: Chart, series: Sequence[Series]) -> str:
    """In a picture there is no HTML to lay words out: a letter is taken as seven pixels wide."""
    out = [f'<text class="name" y="12">{escape(chart.y_label)}</text>']
    at = 8 * len(chart.y_label) + 24
    for s in series:
        mark = f'<line class="swatch {s.style}" x1="{at}" x2="{at + 14}" y1="8" y2="8"/>'
        if s.style in ("dots", "marks"):
            mark = f'<g class="{s.style}"><circle cx="{at + 7}" cy="8" r="4"/></g>'
        out.append(
            f'<g style="--c:var(--c{s.color})">{mark}<text x="{at + 19}"'
            f' y="12">{escape(s.label)}</text></g>'
        )
        at += 7 * len(s.label) + 40
    return "".join(out)


def _scales(chart: Chart, series: Sequence[Series]) -> tuple[_Scale, list[float], _Scale]:
    """(x, the ticks of y, y)"""
    x_low, x_high = _range([x for s in series for x, _ in s.points], None)
    y_ticks = _ticks(
        *_range([y for s in series for _, y in s.points], chart.y_range),
        count=max(3, chart.height // 40),
        whole=chart.whole,
    )
    return _Scale(x_low, x_high), y_ticks, _Scale(y_ticks[0], y_ticks[-1], down=True)


def _plot(
    chart: Chart, series: Sequence[Series], x: _Scale, y: _Scale, y_ticks: Sequence[float]
) -> str:
    out = []
    for tick in y_ticks:
        shown = f"{100 * tick:g}%" if chart.percent else _show(tick)
        out.append(f'<line class="grid" x2="100%" y1="{y(tick)}%" y2="{y(tick)}%"/>')
        out.append(f'<text x="-6" y="{y(tick)}%" dy="4" text-anchor="end">{shown}</text>')
    inside = [t for t in _ticks(x.low, x.high, count=8, whole=True) if x.low <= t <= x.high]
    for place, tick in enumerate(inside):
        # every second one has no room on a phone
        minor = ' class="minor"' if place % 2 and len(inside) > 3 else ""
        out.append(
            f'<text{minor} x="{x(tick)}%" y="100%" dy="16" text-anchor="middle">'
            f"{_show(tick)}</text>"
        )
    out += [_draw(s, x, y) for s in series]
    out.append(
        '<text class="axis" x="100%" y="100%" dy="30" text-anchor="end">'
        f"{escape(chart.x_label)}</text>"
    )
    return "".join(out)


def _draw(s: Series, x: _Scale, y: _Scale) -> str:
    at = [(x(a), y(b)) for a, b in s.points]
    color = f'style="--c:var(--c{s.color})"'
    if s.style in ("dots", "marks") or len(at) == 1:
        style, radius = ("dots", 2.2) if s.style == "dots" else ("marks", 4.5)
        circles = "".join(f'<circle cx="{a}%" cy="{b}%" r="{radius}"/>' for a, b in at)
        return f'<g class="{style}" {color}>{circles}</g>'
    if s.style == "step":
        path = f"M{at[0][0]} {at[0][1]}" + "".join(f"H{a}V{b}" for a, b in at[1:])
    else:
        path = "M" + "L".join(f"{a} {b}" for a, b in at)
    # the box is stretched, the line's width is not
    return (
        '<svg width="100%" height="100%" viewBox="0 0 100 100" preserveAspectRatio="none"'
        f' overflow="visible"><path class="{s.style}" {color} d="{path}"/></svg>'
    )


def _thin_out(s: Series) -> list[Point]:
    n = len(s.points)
    if n <= _MAX_POINTS:
        return list(s.points)
    cuts = [round(i * n / _MAX_POINTS) for i in range(_MAX_POINTS + 1)]
    out = []
    for a, b in pairwise(cuts):
        ys = [y for _, y in s.points[a:b]]
        out.append((s.points[b - 1][0], max(ys) if s.longest == "max" else math.fsum(ys) / len(ys)))
    return out


def _range(values: Sequence[float], least: tuple[float, float] | None) -> tuple[float, float]:
    low, high = min(values), max(values)
    if least:
        low, high = min(low, least[0]), max(high, least[1])
    # a flat line still needs a scale, and so does rounding noise: ticks have twelve decimals
    if high - low < 1e-9:
        pad = abs(low) * 0.1 if abs(low) > 1e-6 else 0.5
        low, high = low - pad, high + pad
    return low, high


def _ticks(low: float, high: float, *, count: int, whole: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at or below `low` to at or above
    `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _show(value: float) -> str:
    """A tick's label: 0.25, 1.5k, 2e-05."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


def _short(value: float) -> float:
    return float(f"{value:.6g}")
