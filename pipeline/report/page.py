"""report.html: one file, no network; readable without script, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.core.eval_figures import last_pass, with_interval
from pipeline.core.format import duration, number, percent
from pipeline.report.charts import (
    course_chart,
    idle_charts,
    learner_charts,
    pool_charts,
    push_chart,
    staleness_chart,
    throughput_charts,
)
from pipeline.report.evaluation import versions
from pipeline.report.learned import learned_tiles
from pipeline.report.samples import sample_list, sample_note, sample_title
from pipeline.report.summary import History
from pipeline.report.svg import Chart, figure
from pipeline.report.waits import wait_list
from pipeline.report.words import is_complete, sentences

_LAST_ROLLOUTS = 20
_HERE = Path(__file__).parent
_COLUMNS = (
    ("rollout", "rollout_id", number),
    ("version", "policy_version", number),
    ("reward", "reward_mean", number),
    ("loss", "loss", number),
    ("grad norm", "grad_norm", number),
    ("KL rollout‖old", "kl_rollout_old", number),
    ("ESS", "ess_fraction", number),
    ("entropy", "entropy", number),
    ("stale mean", "staleness_mean", number),
    ("max", "staleness_max", number),
    ("samples", "num_samples", number),
    ("tokens/s", "tokens_per_second", number),
    ("gen. idle", "generation_idle_fraction", percent),
    ("trainer idle", "trainer_idle_fraction", percent),
    ("step", "step_seconds", duration),
    ("at", "wall_seconds", duration),
)


def render(history: History, summary: Mapping[str, Any]) -> str:
    """The whole page."""
    css, more_css, js = (
        (_HERE / name).read_text(encoding="utf-8") for name in ("chart.css", "page.css", "page.js")
    )
    body = [
        _head(history, summary),
        _section("Loss" if history.is_supervised else "Reward", figure(course_chart(history))),
        _section("Staleness against its bound", figure(staleness_chart(history)), _STALENESS_NOTE),
        _section("Who waits", _two(idle_charts(history)), _IDLE_NOTE),
        _section("Weight pushes", figure(push_chart(history))),
        _section("Learner", _two(learner_charts(history))),
        _section(
            "Throughput and lengths", _two([*throughput_charts(history), *pool_charts(history)])
        ),
        (
            _section(sample_title(history), sample_list(history), sample_note(history))
            if history.samples
            else ""
        ),
        _section("Evaluations", _eval_table(history)) if history.evals else "",
        _section("Long waits", wait_list(history.waits)) if history.waits else "",
        _section("Engine events", _engine_table(history)) if _engine_events(history) else "",
        (
            _section(
                f"Last {min(_LAST_ROLLOUTS, len(history.train))} rollouts", _rollout_table(history)
            )
            if history.train
            else ""
        ),
        _section("Configuration", _config(history)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        f' content="width=device-width, initial-scale=1"><title>{escape(history.name)} ·'
        f" Slipstream</title>\n<style>\n{css}{more_css}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + f"\n<script>\n{js}</script>\n</body></html>\n"
    )


_STALENESS_NOTE = (
    "The learner's policy version at consumption minus the version whose weights produced the"
    " token; every trained token counts once."
)
_IDLE_NOTE = (
    "Generators: mean over engines of the share of time without a request. "
    "Trainer: the share in which it neither stepped nor pushed nor saved."
)


def _head(history: History, summary: Mapping[str, Any]) -> str:
    s = summary
    tiles = (
        *learned_tiles(history, s),
        (
            f"{number(s['staleness_max'])} / {number(s['staleness_bound'])}",
            "staleness, max / bound",
        ),
        (f"{percent(s['generation_idle_fraction'])}", "generators idle"),
        (f"{percent(s['trainer_idle_fraction'])}", "trainer idle"),
        (
            f"{number(s['push_count'])} · {duration(s['push_stall_seconds_p50'])}",
            "pushes · median engine pause",
        ),
        (
            f"{number(s['samples_trained'])}",
            f"samples trained of {number(s['samples_generated'])} generated",
        ),
        (number(s["samples_failed"]), "samples failed"),
        (number(s["samples_discarded"]), "samples generated, never trained"),
        *(
            [(number(s["samples_unjudged"]), "answers not scored in time, so wrong")]
            if s["samples_unjudged"]
            else []
        ),
    )
    state = (
        '<span class="state done">complete</span>'
        if is_complete(history)
        else '<span class="state part">not complete</span>'
    )
    cells = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for value, label in tiles
    )
    return (
        f"<h1>{escape(history.name)}{state}</h1>"
        f"<p>{escape(sentences(history, summary))}</p>{_non_finite(history)}"
        f'<div class="tiles">{cells}</div>'
    )


def _non_finite(history: History) -> str:
    rows = [
        f"rollout {r['rollout_id']}: {', '.join(r['non_finite'])}"
        for r in history.train
        if r.get("non_finite")
    ]
    if not rows:
        return ""
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f'<p style="color:var(--bad)">Not a number: {escape("; ".join(rows[:3]) + more)}.</p>'


def _section(title: str, content: str, note: str = "") -> str:
    text = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{text}{content}</section>"


def _two(charts: Sequence[Chart]) -> str:
    return f'<div class="grid2">{"".join(map(figure, charts))}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    """`text`: columns set flush left."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=text' if i in text else ''}>{escape(c)}</{tag}>"
            for i, c in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _rollout_table(history: History) -> str:
    train = history.train
    columns = [
        c
        for c in _COLUMNS
        if any(row.get(c[1]) is not None for row in train)
        and not (c[1] == "reward_mean" and history.is_supervised)
    ]
    rows = [[show(row.get(key)) for _, key, show in columns] for row in train[-_LAST_ROLLOUTS:]]
    return _table([title for title, _, _ in columns], rows)


def _eval_table(history: History) -> str:
    rows = [
        [
            str(r.get("name", "eval")),
            number(r.get("rollout_id")),
            versions(r),
            with_interval(r, "reward_mean") if not r.get("error") else f"failed: {r['error']}",
            last_pass(r) or "-",
            number(r.get("num_samples")),
            number(r.get("num_failed")),
            percent(r.get("truncated_fraction")),
            duration(r.get("seconds")),
        ]
        for r in history.evals[-_LAST_ROLLOUTS:]
    ]
    return _table(
        [
            "data set",
            "after rollouts",
            "policy versions",
            "reward [95%]",
            "pass@k [95%]",
            "samples",
            "failed",
            "truncated",
            "took",
        ],
        rows,
    )


def _engine_events(history: History) -> list[dict[str, Any]]:
    return [r for r in history.engines if r.get("event") != "stats"]


def _engine_table(history: History) -> str:
    skip = {"kind", "time", "event", "engine", "wall_seconds"}
    rows = [
        [
            duration(r.get("wall_seconds")),
            str(r.get("engine", "-")),
            str(r.get("event", "-")),
            ", ".join(f"{k} {v}" for k, v in r.items() if k not in skip and v is not None),
        ]
        for r in _engine_events(history)
    ]
    return _table(["at", "engine", "event", "detail"], rows, text=(1, 2, 3))


def _config(history: History) -> str:
    if not history.config_text:
        return '<p class="empty">config.yaml is missing.</p>'
    return (
        "<details"
        f" open><summary>config.yaml</summary><pre>{escape(history.config_text)}</pre></details>"
    )
