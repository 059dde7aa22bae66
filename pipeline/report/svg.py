"""Line charts as inline SVG: no script needed to read them, coloured by the page's CSS variables,
so light and dark both work."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34  # margins, in SVG units
_MAX_POINTS = 600  # a longer series is drawn, and shown on hover, as the summary of equal stretches

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


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(
            self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2
        )


def chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    width: int = 720,
    height: int = 240,
    y_range: tuple[float, float] | None = None,
    percent: bool = False,
    whole: bool = False,
) -> str:
    """A <figure> with legend and SVG; a line saying so where there is nothing to draw. `y_range` is
    widened to hold the data. `percent`: y is a share; `whole`: y ticks are integers."""
    series = [
        Series(label=s.label, points=_thin_out(s), color=s.color, style=s.style)
        for s in series
        if s.points
    ]
    if not series:
        return f'<p class="empty">{escape(y_label)}: nothing recorded.</p>'
    x_low, x_high = _range([x for s in series for x, _ in s.points], None)
    y_ticks = _ticks(
        *_range([y for s in series for _, y in s.points], y_range),
        count=max(3, height // 45),
        whole=whole,
    )
    x = _Scale(x_low, x_high, _LEFT, width - _RIGHT)
    y = _Scale(y_ticks[0], y_ticks[-1], height - _BOTTOM, _TOP)
    show = (lambda v: f"{100 * v:g}%") if percent else _show
    parts = [*_axes(x, y, y_ticks, show, width, height), *(_draw(s, x, y) for s in series)]
    label = (
        f'<text class="axis" x="{width - _RIGHT}" y="{height - 4}"'
        f' text-anchor="end">{escape(x_label)}</text>'
    )
    # what the page's script needs to show values under the pointer
    data = {
        "x": [x.low, x.high, x.start, x.end],
        "percent": percent,
        "series": [
            {
                "label": s.label,
                "color": s.color,
                "points": [[_short(a), _short(b)] for a, b in s.points],
            }
            for s in series
        ],
    }
    return (
        f'<figure class="chart"><figcaption><b>{escape(y_label)}</b>'
        f"{''.join(map(_legend, series))}</figcaption><svg"
        f' viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y_label)}"'
        f' data-chart="{escape(json.dumps(data))}">{"".join(parts)}{label}<line class="guide"'
        f' y1="{_TOP}" y2="{height - _BOTTOM}" visibility="hidden"/></svg></figure>'
    )


def _axes(
    x: _Scale,
    y: _Scale,
    y_ticks: Sequence[float],
    show: Callable[[float], str],
    width: int,
    height: int,
) -> list[str]:
    out = []
    for tick in y_ticks:
        out.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y(tick)}" y2="{y(tick)}"/>'
        )
        out.append(
            f'<text class="tick" x="{_LEFT - 6}" y="{y(tick) + 4}"'
            f' text-anchor="end">{show(tick)}</text>'
        )
    for tick in _ticks(x.low, x.high, count=8, whole=True):
        if x.low <= tick <= x.high:
            out.append(
                f'<text class="tick" x="{x(tick)}" y="{height - _BOTTOM + 16}"'
                f' text-anchor="middle">{_show(tick)}</text>'
            )
    return out


def _draw(s: Series, x: _Scale, y: _Scale) -> str:
    at = [(x(a), y(b)) for a, b in s.points]
    color = f'style="--c:var(--c{s.color})"'
    if s.style == "dots":
        return (
            f'<g class="dots" {color}>'
            + "".join(f'<circle cx="{a}" cy="{b}" r="2.2"/>' for a, b in at)
            + "</g>"
        )
    if s.style == "marks" or len(at) == 1:
        marks = "".join(
            f'<rect x="{a - 4:.2f}" y="{b - 4:.2f}" width="8" height="8" transform="rotate(45 {a}'
            f' {b})"/>'
            for a, b in at
        )
        return f'<g class="marks" {color}>{marks}</g>'
    if s.style == "step":
        path = f"M{at[0][0]} {at[0][1]}" + "".join(f"H{a}V{b}" for a, b in at[1:])
    else:
        path = "M" + "L".join(f"{a} {b}" for a, b in at)
    return f'<path class="{s.style}" {color} d="{path}"/>'


def _legend(s: Series) -> str:
    return f'<span class="key {s.style}" style="--c:var(--c{s.color})">{escape(s.label)}</span>'


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
