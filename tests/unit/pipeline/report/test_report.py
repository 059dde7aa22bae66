"""summary.json, reward.svg and report.html, from metrics.jsonl."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.report import closing_lines, load_history, write_report, write_summary
from pipeline.report.svg import Chart, Series, figure
from pipeline.run.drops import Dropped, DroppedGroups
from pipeline.run.lookout import Blocked
from pipeline.run.record_file import line_of
from pipeline.run.watchdog import Watchdog
from tests.manual_time import ManualTime
from tests.promised_fields import SUMMARY_FIELDS
from tests.unit.sample_run import records, write_run

VOID = {"meta", "line", "circle", "rect", "path", "br"}


class Balanced(HTMLParser):
    """Every tag closed in order; every attribute that could reach the network noted."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [
            f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "action")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def check_page(path: Path) -> str:
    page = path.read_text()
    parser = Balanced()
    parser.feed(page)
    assert not parser.open
    assert not parser.links
    assert not re.search(r"https?://|@import|url\(|\bNaN\b|\bundefined\b", page)
    for chart in re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL):
        ET.fromstring(chart)
    return page


def test_summary_of_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 40)
    got = write_summary(run)
    assert json.loads((run / "summary.json").read_text()) == got
    assert list(got) == SUMMARY_FIELDS
    rows = list(records(40))
    train, pushes = ([r for r in rows if r["kind"] == kind] for kind in ("train", "push"))
    rewards = [r["reward_mean"] for r in train]
    total = sum(r["interval_seconds"] for r in train)
    first_at_goal = next(i for i in range(40) if fmean(rewards[max(0, i - 4) : i + 1]) >= 0.9)
    assert got == pytest.approx(
        {
            "num_rollouts": 40,
            "final_policy_version": 40,
            "reward_first": fmean(rewards[:5]),
            "reward_last": fmean(rewards[-5:]),
            "samples_generated": 42 * 32,
            "samples_trained": 40 * 32,
            "samples_failed": 39 // 9,
            "samples_timed_out": 0,
            "samples_discarded": 0,
            "samples_discarded_before_buffer": 0,
            "samples_discarded_stale": 0,
            "samples_discarded_untrained": 0,
            "samples_unjudged": 0,
            "staleness_max": 2,
            "staleness_bound": 2,
            "groups_replayed": 0,
            "push_count": 40,
            "push_stall_seconds_p50": median(r["stall_seconds"] for r in pushes),
            "generation_idle_fraction": (
                sum(r["generation_idle_fraction"] * r["interval_seconds"] for r in train) / total
            ),
            "trainer_idle_fraction": (
                sum(r["trainer_idle_fraction"] * r["interval_seconds"] for r in train) / total
            ),
            "wall_seconds": max(r["wall_seconds"] for r in rows if "wall_seconds" in r),
            "seconds_to_reward_0_9": train[first_at_goal]["wall_seconds"],
            "rollouts_with_equal_rewards": 0,
        }
    )
    assert write_summary(run, wall_seconds=999.0)["wall_seconds"] == 999.0


def test_a_goal_that_is_never_reached_is_null(tmp_path: Path) -> None:
    run = tmp_path / "r"
    run.mkdir()
    rows = [
        {"kind": "train", "rollout_id": i, "reward_mean": 1.0 if i % 2 else 0.7, "wall_seconds": i}
        for i in range(20)
    ]
    (run / "metrics.jsonl").write_text("".join(map(line_of, rows)))
    got = write_summary(run)
    # single rollouts touch 1.0, the trailing mean does not
    assert got["seconds_to_reward_0_9"] is None
    check_page(write_report(run))


def test_what_was_generated_and_never_trained_on_is_counted_by_cause(tmp_path: Path) -> None:
    run = tmp_path / "r"
    run.mkdir()
    rows = [
        {
            "kind": "train",
            "rollout_id": i,
            "samples_discarded": 4 * (i + 1),
            "samples_removed_stale": i,
            "length_removed_p50": 9,
            "num_samples_untrained": 1,
        }
        for i in range(3)
    ]
    (run / "metrics.jsonl").write_text("".join(map(line_of, rows)))
    got = write_summary(run)
    assert got["samples_discarded_before_buffer"] == 12
    assert got["samples_discarded_stale"] == 2
    assert got["samples_discarded_untrained"] == 3
    assert got["samples_discarded"] == 17
    assert "Generated and never trained on: 17 samples (" in closing_lines(run, got)[0]


def test_a_run_that_dropped_every_group_says_how_much_it_generated(tmp_path: Path) -> None:
    """Only waits are recorded of it; those before the last trained rollout count for nothing."""
    counts = {"samples_generated": 40, "samples_discarded": 30}
    taken_out = {"samples_removed_by_buffer_filter": 10}
    wait = {"kind": "wait", "stage": "take", "seconds": 40.0, "where": "x"}
    train = {"kind": "train", "rollout_id": 0, "samples_generated": 50, "samples_discarded": 31}
    late = {**wait, "samples_generated": 90, "samples_discarded": 60, **taken_out}
    for name, rows, discarded in (
        ("never", [{**wait, **counts, **taken_out}], 40),
        ("at the end", [{**wait, **counts}, train, late], 70),
        ("in between", [{**wait, "samples_discarded": 99}, {**train, **taken_out}], 41),
    ):
        run = tmp_path / name
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(map(line_of, rows)))
        got = write_summary(run)
        assert (got["samples_discarded"], got["samples_discarded_by_buffer_filter"]) == (
            discarded,
            10,
        ), name
        said = closing_lines(run, got)[0]
        assert f"Generated and never trained on: {discarded} samples (" in said
        assert "10 taken out by --buffer-filter-path" in said
        assert ("No rollout was trained" in said) == (name == "never")
        check_page(write_report(run))


def test_long_waits_are_told_with_whom_they_were_for(tmp_path: Path) -> None:
    time = ManualTime()
    watchdog = Watchdog(time)
    with watchdog.beside("group", 3, "generate"), watchdog.stage("take"):
        time.advance(40.0)
        silence = watchdog.check()
    with watchdog.stage("push"):
        time.advance(60.0)
        other = watchdog.check()
    assert silence is not None and other is not None
    drops = Dropped(flag="--a-flag <f>", advice="-", num_groups=9, num_reasons=1, reasons={"x": 9})
    all_dropped = DroppedGroups(num_groups=9, num_ready=0, num_wanted=2, causes=(drops,))
    dropping = replace(silence, dropped=all_dropped)
    blocked = Blocked(seconds=31.0, where="<my>.py:3 (generate)")
    run = write_run(tmp_path / "r", 3)
    with (run / "metrics.jsonl").open("a") as file:
        for news in (silence, other, dropping, blocked):
            file.write(line_of({"kind": "wait", **news.record(), "wall_seconds": 50.0}))
    page = check_page(write_report(run))
    assert "<h2>Long waits</h2>" in page
    assert "40.0 s at &#x27;take&#x27;, for group 3: generate for 40.0 s, at " in page
    assert "at &#x27;push&#x27;, at " in page
    assert "40.0 s, 9 groups dropped (9 by --a-flag &lt;f&gt;: 9 x), at &#x27;take&#x27;" in page
    assert "31.0 s at &#x27;blocked&#x27;, at &lt;my&gt;.py:3 (generate)" in page
    assert "Long waits" not in check_page(write_report(write_run(tmp_path / "q", 3)))


def test_rollouts_trained_again_after_a_kill_count_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 30)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    again = [line for line in lines if json.loads(line).get("rollout_id", -1) >= 20]
    (run / "metrics.jsonl").write_text("".join(lines) + lines[5][:40] + "\n" + "".join(again))
    got = write_summary(run)
    assert (got["num_rollouts"], got["push_count"], got["samples_trained"]) == (30, 30, 30 * 32)


def test_report_of_a_whole_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<b>r</b>", 40)
    page = check_page(write_report(run))
    for title in (
        "Reward",
        "Staleness against its bound",
        "Who waits",
        "Weight pushes",
        "Learner",
        "What the model said",
        "Evaluations",
        "Engine events",
        "Configuration",
    ):
        assert f"<h2>{title}</h2>" in page
    assert "40 of 40 rollouts" in page
    assert "within the bound of 2" in page
    assert ">complete<" in page
    assert "<b>r</b>" not in page
    assert page.count('class="sample"') == 3 * 4
    assert "&lt;yes&gt; &amp; so on" in page and "<yes>" not in page
    assert "rollout 39, trained at policy version 39" in page
    assert "by version 38, " in page
    assert "&lt;tiny &amp; local&gt;" in page
    assert drawn_once(page, run / "reward.svg")
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_report_of_an_interrupted_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 10, asked_for=40)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "rollout_id": 10, "rew')
    page = check_page(write_report(run))
    assert "10 of 40 rollouts" in page
    assert ">not complete<" in page
    assert closing_lines(run, write_summary(run))[0].startswith("stopped early: 10 of 40 rollouts")


def drawn_once(page: str, picture: Path) -> bool:
    """Is every line of the picture one of the page's?"""
    lines = re.findall(r'd="(M[^"]+)"', picture.read_text())
    return len(lines) >= 4 and all(f'd="{line}"' in page for line in lines)


def scaled_texts(svg: ET.Element) -> list[str]:
    """Texts inside a box whose units are not pixels, and so are not as large as their font says."""
    name = "{http://www.w3.org/2000/svg}" if svg.tag.startswith("{") else ""
    return [
        text.text or ""
        for box in svg.iter(f"{name}svg")
        if "viewBox" in box.attrib
        for text in box.iter(f"{name}text")
    ]


def test_texts_in_charts_are_as_large_on_a_phone_as_on_a_desk(tmp_path: Path) -> None:
    page = check_page(write_report(write_run(tmp_path / "r", 40)))
    charts = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(charts) > 10
    for chart in charts:
        svg = ET.fromstring(re.search(r"<svg.*</svg>", chart, flags=re.DOTALL).group())  # type: ignore[union-attr]
        assert svg.attrib["class"] == "plot" and re.fullmatch(r"height:\d+px", svg.attrib["style"])
        assert len(list(svg.iter("text"))) > 5
        assert scaled_texts(svg) == []
    sizes = [float(x) for x in re.findall(r"font(?:-size)?:[^;}]*?([\d.]+)px", page)]
    assert min(sizes) >= 11


def test_the_picture_is_whole_by_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a & b", 30)
    write_report(run)
    text = (run / "reward.svg").read_text()
    root = ET.fromstring(text)
    shown = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    for word in ("a & b: reward over 30 rollouts", "mean of 5", "eval: held-out", "bound"):
        assert word in shown
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert (root.attrib["width"], root.attrib["height"]) == (f"{width:g}", f"{height:g}")
    assert set(re.findall(r"var\((--\w+)\)", text)) <= set(re.findall(r"(--\w+):", text))


HOLES: list[list[dict[str, Any]]] = [
    [],
    [{"kind": "engine", "event": "start", "engine": "e"}],
    [{"kind": "eval", "rollout_id": 0, "error": "engine gone"}],
    [
        {
            "kind": "train",
            "rollout_id": 0,
            "reward_mean": None,
            "loss": None,
            "non_finite": ["loss=nan"],
        }
    ],
    [
        {
            "kind": "train",
            "rollout_id": 0,
            "reward_mean": 0.5,
            "staleness_max": 0,
            "staleness_bound": 0,
            "wall_seconds": 1.0,
        }
    ],
    [
        {
            "kind": "train",
            "rollout_id": i,
            "reward_mean": -100.0 * i,
            "loss": 1e9,
            "wall_seconds": 1.0,
        }
        for i in range(3)
    ],
]


@pytest.mark.parametrize("rows", HOLES)
def test_report_of_nearly_nothing(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = tmp_path / "r"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(map(line_of, rows)))
    got = write_summary(run)
    assert list(got) == SUMMARY_FIELDS
    assert got["num_rollouts"] == sum(r["kind"] == "train" for r in rows)
    check_page(write_report(run))
    assert (run / "reward.svg").stat().st_size > 1000


def test_a_long_series_is_thinned_out_but_keeps_its_peaks() -> None:
    points = [(float(i), 7.0 if i == 4321 else 1.0) for i in range(10_000)]
    svg = figure(
        Chart(series=[Series(label="max", points=points, longest="max")], x_label="x", y_label="y")
    )
    assert len(svg) < 60_000
    data = json.loads(ET.fromstring(re.search(r"<svg.*</svg>", svg).group()).attrib["data-chart"])  # type: ignore[union-attr]
    assert max(y for _, y in data["series"][0]["points"]) == 7.0
    assert data["series"][0]["points"][-1][0] == 9999


def test_the_configuration_is_read_by_flag(tmp_path: Path) -> None:
    history = load_history(write_run(tmp_path / "r", 3, asked_for=12))
    assert history.num_rollout == 12
    assert history.flag("num") is None


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "r", 5)
    assert main(["report", str(run)]) == 0
    assert all((run / name).exists() for name in ("summary.json", "reward.svg", "report.html"))
    assert "5 of 5 rollouts" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such run directory" in capsys.readouterr().err


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_help_imports_nothing_heavy() -> None:
    heavy = "[n for n in ('numpy', 'rich', 'torch') if n in sys.modules]"
    assert (
        _python(f"import sys, pipeline.cli.main as m; m.parser().format_help(); print({heavy})")
        == "[]"
    )


def test_reports_need_neither_pandas_nor_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "r", 3)
    _python(
        "import sys; sys.modules.update(pandas=None, torch=None); from pipeline.__main__ import"
        f" main; assert main(['report', {str(run)!r}]) == 0"
    )
    assert (run / "reward.svg").exists()


@pytest.mark.parametrize(
    "values", [[0.0, 1e-9, -1e-9], [1e-13, 3e-13], [0.0, 0.0], [5.0, 5.0 + 1e-12]]
)
def test_rounding_noise_is_drawn_as_a_flat_line(values: list[float]) -> None:
    series = [Series(label="loss", points=list(enumerate(values)))]
    assert "<path" in figure(Chart(series=series, x_label="rollout", y_label="loss"))
