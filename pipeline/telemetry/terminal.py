"""The terminal: a live panel on a TTY, one plain line a rollout elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.eval_figures import with_interval
from pipeline.core.format import duration, number, percent
from pipeline.core.time import TimeSource
from pipeline.telemetry.view import (
    RunView,
    breaks_bound,
    eval_detail,
    event_line,
    fraction,
    plain_line,
    sparkline,
    staleness_bound,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_BAR = 12  # characters
_SPARK = 36
_REFRESH_PER_SECOND = 4


class PlainSink:
    """Prints one line for every rollout, every evaluation, and everything that happens to an
    engine."""

    def __init__(self, view: RunView, write_line: Callable[[str], None]) -> None:
        self._view, self._write_line = view, write_line

    def write(self, record: Mapping[str, Any]) -> None:
        self._view.add(record)
        line = plain_line(self._view) if record["kind"] == "train" else event_line(record)
        if line:
            self._write_line(line)

    def close(self) -> None:
        pass


class LiveSink:
    """Draws a panel with rich's Live: it is redrawn in place, log lines scroll by above it, and its
    last state stays when the run ends."""

    def __init__(self, view: RunView, console: Console, time: TimeSource) -> None:
        from rich.live import Live

        self._view, self._time = view, time
        self._start = self._last_train = time.now()
        self._closed_at: float | None = None
        self._lock = threading.Lock()  # rich redraws from a thread of its own
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=_REFRESH_PER_SECOND,
            transient=False,
        )
        self._restore_echo = _without_control_echo()
        self._live.start()

    def write(self, record: Mapping[str, Any]) -> None:
        with self._lock:
            self._view.add(record)
            if record["kind"] == "train":
                self._last_train = self._time.now()
        if record["kind"] == "engine" and record.get("event") in ("death", "restart", "no_room"):
            self._live.console.print(
                event_line(record), style="yellow", highlight=False, markup=False
            )

    def close(self) -> None:
        self._closed_at = self._time.now()
        self._live.stop()
        self._restore_echo()

    def _render(self) -> RenderableType:
        now = self._closed_at if self._closed_at is not None else self._time.now()
        eta = self._view.eta_seconds()
        left = (
            None
            if eta is None or self._closed_at is not None
            else max(eta - (now - self._last_train), 0.0)
        )
        with self._lock:
            return panel(self._view, elapsed=now - self._start, eta=left)


def _without_control_echo() -> Callable[[], None]:
    """Keeps the terminal from printing ^C into the panel, which would leave a torn copy of it;
    returns how to undo that."""
    try:
        import termios
    except ImportError:  # not a POSIX system
        return lambda: None
    try:
        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
        quiet = list(before)
        quiet[3] &= ~termios.ECHOCTL
        termios.tcsetattr(fd, termios.TCSANOW, quiet)
    except (OSError, ValueError, termios.error):  # stdin is no terminal
        return lambda: None
    return lambda: termios.tcsetattr(fd, termios.TCSANOW, before)


def panel(view: RunView, *, elapsed: float, eta: float | None) -> RenderableType:
    """`elapsed` seconds of this process, `eta` seconds left (None: not known)."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    body: RenderableType
    if view.train is None:
        body = Text(
            f"starting, {duration(elapsed)} so far: the first rollout is not trained yet",
            style="dim",
        )
    else:
        body = Table.grid(padding=(0, 2))
        # the labels keep their width and the values give way: rich narrows a column that may wrap
        # before one that may not, and `_text` cuts a value at its end instead of wrapping it
        body.add_column(style="bold", no_wrap=True)
        body.add_column()
        for row in (_course, _staleness, _buffer, _speed, _idle, _push, _engines, _learner, _evals):
            row(view, view.train, body)
    return Panel(
        Group(_progress(view, elapsed, eta), "", body),
        title=f"[bold]slipstream[/] · {view.name}",
        subtitle=view.run_dir,
        title_align="left",
        subtitle_align="right",
        border_style="cyan",
        padding=(0, 1),
    )


def _progress(view: RunView, elapsed: float, eta: float | None) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    row = Table.grid(expand=True, padding=(0, 1))
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, overflow="ellipsis")
    left = f" · eta {duration(eta)}" if eta is not None else ""
    row.add_row(
        ProgressBar(
            total=max(view.num_rollout, 1),
            completed=view.num_trained,
            complete_style="cyan",
            finished_style="green",
        ),
        f"[bold]{view.num_trained}[/]/{view.num_rollout} rollouts · {duration(elapsed)}{left}",
    )
    return row


def _course(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    out.add_row(
        "loss" if view.supervised else "reward",
        _text(
            (number(view.followed), "bold green"),
            "  ",
            (sparkline(view.course, _SPARK, shares=not view.supervised), "green"),
        ),
    )


def _staleness(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    values = (
        f"p50 {number(train.get('staleness_p50'))} · p99 {number(train.get('staleness_p99'))} · max"
    )
    bound = (staleness_bound(train), "red" if breaks_bound(train) else "green")
    out.add_row("staleness", _text(values, " ", bound, ("  versions, token-wise", "dim")))


def _buffer(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    if "buffer_ready" not in train:
        return
    groups = (
        f" {fraction(train, 'buffer_ready', 'buffer_capacity')} groups ready,"
        f" {number(train.get('buffer_pending'))} generating"
    )
    out.add_row("buffer", _text((_bar(train.get("buffer_fill")), "blue"), groups))


def _speed(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    rest = (
        f" · a rollout in {duration(train.get('interval_seconds'))}, its step"
        f" {duration(train.get('step_seconds'))}"
    )
    if train.get("peak_memory_bytes"):
        rest += f" · learner's peak {number(train['peak_memory_bytes'] / 2**30)} GiB"
    if train.get("mfu"):
        rest += f" · MFU {percent(train['mfu'])}"
    out.add_row("speed", _text(f"{number(train.get('tokens_per_second'))} tokens/s", (rest, "dim")))


def _idle(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    generation, trainer = train.get("generation_idle_fraction"), train.get("trainer_idle_fraction")
    out.add_row(
        "idle",
        _text(
            f"generators {percent(generation)} ",
            (_bar(generation), "magenta"),
            f"  trainer {percent(trainer)} ",
            (_bar(trainer), "magenta"),
        ),
    )


def _push(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    if push := view.push:
        rest = (
            f" · {duration(push.get('seconds'))}, engines paused"
            f" {duration(push.get('stall_seconds'))}"
        )
        out.add_row("push", _text(f"version {push.get('policy_version')}", rest))


def _engines(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    up, total = view.engines_up()
    if not total:
        return
    running = (view.pool or {}).get("num_running")
    parts = [(f"{up}/{total} up", "green" if up == total else "bold red")]
    if running is not None:
        parts.append((f" · {number(running)} requests running", ""))
    if view.num_deaths:
        parts.append((f" · {view.num_deaths} died so far", "yellow"))
    out.add_row("engines", _text(*parts))


def _learner(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    shown = {
        "loss": "loss",
        "grad norm": "grad_norm",
        "kl": "kl_rollout_old",
        "ess": "ess_fraction",
        "entropy": "entropy",
    }
    said = [
        f"{label} {number(train[key])}"
        for label, key in shown.items()
        if train.get(key) is not None and not (key == "loss" and view.supervised)
    ]
    out.add_row("learner", _text(" · ".join(said)))


def _evals(view: RunView, train: Mapping[str, Any], out: Table) -> None:
    for name, record in view.evals.items():
        if record.get("error"):
            out.add_row("eval", _text(f"{name} ", (f"failed: {record['error']}", "red")))
        else:
            out.add_row(
                "eval",
                _text(
                    f"{name} ",
                    (with_interval(record, "reward_mean"), "bold green"),
                    (f"  {eval_detail(record)}", "dim"),
                ),
            )


def _text(*parts: str | tuple[str, str]) -> Text:
    """One line, which is cut at its end where the terminal is narrower."""
    from rich.text import Text

    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _bar(share: float | None) -> str:
    filled = round(min(max(share or 0.0, 0.0), 1.0) * _BAR)
    return "█" * filled + "░" * (_BAR - filled)
