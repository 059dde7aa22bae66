"""Numbers and times as people read them, the same in the terminal, the report and the log. None is
shown as a dash."""

from __future__ import annotations


def number(value: float | None) -> str:
    """0.123, 1.23, 12.3, 1,234, 0.00203, 4.52e-05: three significant digits, but all digits of a
    whole number. 0.000 is a zero that was measured."""
    if value is None:
        return "-"
    size = abs(value)
    if isinstance(value, int) or size >= 99.95:
        return f"{round(value):,}"
    if 0 < size < 0.0995:
        return f"{value:.3g}"
    return f"{value:.{3 if size < 0.9995 else 2 if size < 9.995 else 1}f}"


def counted(count: int, noun: str) -> str:
    """1 group, 1,234 groups."""
    return f"{number(count)} {noun}" + ("" if count == 1 else "s")


def percent(value: float | None) -> str:
    """A share, with one decimal: 12.3%."""
    return "-" if value is None else f"{100 * value:.1f}%"


def duration(value: float | None) -> str:
    """43 ms, 12.3 s, 2 min 05 s, 3 h 12 min, 2 d 03 h."""
    if value is None:
        return "-"
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
