"""One emit, every sink; terminal views; log; trackers."""

from __future__ import annotations

import io
import json
import logging
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.schema import AlgorithmConfig, Config, RunConfig, TrackingConfig
from pipeline.run.record_file import read_records
from pipeline.run.rundir import RunDir, create_run_dir
from pipeline.telemetry import JsonlSink, Telemetry, open_telemetry
from pipeline.telemetry.logs import start_logging
from pipeline.telemetry.terminal import panel
from pipeline.telemetry.trackers import TABLE
from pipeline.telemetry.view import RunView, plain_line, sparkline
from tests.manual_time import ManualTime
from tests.unit.sample_run import records


class Keeps:
    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []
        self.closed = 0

    def write(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def close(self) -> None:
        self.closed += 1


class Breaks(Keeps):
    def write(self, record: Mapping[str, Any]) -> None:
        super().write(record)
        raise OSError("disk full")

    def close(self) -> None:
        raise RuntimeError("still broken")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return create_run_dir(tmp_path, "r")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("pipeline").level)
    yield
    assert (root.level, list(root.handlers), logging.getLogger("pipeline").level) == before, (
        "logging was not given back"
    )


def test_every_sink_gets_the_same_dict_and_a_broken_one_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, broken, last = Keeps(), Breaks(), Keeps()
    telemetry = Telemetry([first, broken, last], unix_time=lambda: 12.5)
    telemetry.emit("train", loss=float("nan"), rollout_id=0)
    telemetry.emit("push", rollout_id=0)
    assert first.records == last.records
    assert first.records[0] == {
        "kind": "train",
        "time": 12.5,
        "loss": None,
        "rollout_id": 0,
        "non_finite": ["loss=nan"],
    }
    assert len(broken.records) == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "disk full" in caplog.text
    telemetry.close()
    telemetry.close()
    assert (first.closed, last.closed) == (1, 1)


def test_an_unknown_kind_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="training"):
        Telemetry([]).emit("training")


def test_jsonl_is_whole_after_each_line_and_after_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"kind": "train", "roll')
    sink = JsonlSink(path)
    sink.write({"kind": "train", "rollout_id": 1})
    # before any close
    assert json.loads(path.read_text().splitlines()[1]) == {"kind": "train", "rollout_id": 1}
    sink.close()


def _config(**tracking: Any) -> Config:
    return Config(run=RunConfig(num_rollout=20), tracking=TrackingConfig(**tracking))


def test_plain_output_is_a_line_a_rollout(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    telemetry = open_telemetry(run_dir, _config(), live=False)
    for record in records(20):
        telemetry.emit(**record)
    logging.getLogger("pipeline.x").warning("look here")
    logging.getLogger("somebody.else").info("not this")
    telemetry.close()
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("rollout")] == [
        f"rollout {i}/20" for i in range(1, 21)
    ]
    assert "max 2 (bound 2)" in lines[-1] or "max 2 (bound 2)" in lines[-2]
    assert any(line.startswith("eval held-out: reward") for line in lines)
    assert any("engine-0: death (reason exit code -9)" in line for line in lines)
    assert "warning: look here" in err
    assert "not this" not in out + err
    assert "WARNING pipeline.x: look here" in run_dir.run_log.read_text()
    said = [r for r in records(20) if r["kind"] == "sample"]
    assert len(read_records(run_dir.metrics)) == len(list(records(20))) - len(said)
    assert [r["response"] for r in read_records(run_dir.samples)] == [r["response"] for r in said]


def test_the_live_view_shows_the_run_and_the_warnings(
    run_dir: RunDir, restored_logging: None
) -> None:
    screen, time = io.StringIO(), ManualTime()
    console = Console(file=screen, force_terminal=True, width=110, height=40, color_system=None)
    telemetry = open_telemetry(run_dir, _config(), live=True, console=console, time=time)
    for record in records(20):
        telemetry.emit(**record)
    logging.getLogger("stages.y").warning("an engine is slow")
    telemetry.close()
    shown = screen.getvalue()
    assert "20/20 rollouts" in shown
    assert "an engine is slow" in shown
    for word in (
        "reward",
        "staleness",
        "bound 2",
        "groups ready",
        "tokens/s",
        "generators",
        "trainer",
        "engines paused",
        "1/1 up",
        "held-out",
    ):
        assert word in shown, word


def _text_of(view: RunView, width: int) -> str:
    console = Console(file=io.StringIO(), force_terminal=False, width=width, color_system=None)
    with console.capture() as capture:
        console.print(panel(view, elapsed=5.0, eta=None))
    return capture.get()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_panel_fits_any_width(width: int) -> None:
    view = RunView(name="r", num_rollout=20, run_dir="runs/r")
    assert "not trained yet" in _text_of(view, 80)
    for record in records(20):
        view.add(record)
    assert max(map(len, _text_of(view, width).splitlines())) <= width


LABELS = ["reward", "staleness", "buffer", "speed", "idle", "push", "engines", "learner", "eval"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_every_label_is_whole_and_a_long_row_is_cut_at_its_end(width: int) -> None:
    view = RunView(name="r", num_rollout=20, run_dir="runs/r")
    for record in records(20):
        view.add(record)
    view.add({"kind": "eval", "name": "a-long-name" * 20, "reward_mean": 0.5, "num_samples": 9})
    lines = [line.strip("│ ") for line in _text_of(view, width).splitlines()]
    shown = [line.split()[0] for line in lines if line.split() and line.split()[0] in LABELS]
    # a row that wrapped would leave lines without a label between these
    assert shown == [*LABELS, "eval"]
    assert lines[-2].startswith("eval") and lines[-2].endswith("…")
    first = lines.index(next(line for line in lines if line.startswith("reward")))
    assert len(lines) - 1 - first == len(shown)


def test_views_survive_records_with_holes() -> None:
    view = RunView(name="r", num_rollout=20)
    view.add({"kind": "train", "rollout_id": 0, "reward_mean": None, "loss": None})
    view.add({"kind": "eval", "rollout_id": 0, "error": "engine gone"})
    view.add({"kind": "engine"})
    assert plain_line(view).startswith("rollout 1/20 | reward -")
    assert "engine gone" in _text_of(view, 100)


def test_a_supervised_run_shows_its_loss_and_no_reward(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    config = replace(_config(), algorithm=AlgorithmConfig(loss_type="sft_loss"))
    telemetry = open_telemetry(run_dir, config, live=False)
    view = RunView(name="r", num_rollout=20, supervised=True)
    for record in records(20):
        if record["kind"] not in ("eval", "sample"):  # a scorer of its own may judge a held-out set
            telemetry.emit(**record)
            view.add(record)
    telemetry.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rollout")]
    assert len(lines) == 20 and all("| loss " in line for line in lines)
    shown = _text_of(view, 100)
    row = next(line for line in shown.splitlines() if line.startswith("│ loss"))
    assert "█" in row and "▁" in row, "drawn on its own scale, not from 0 to 1"
    assert "reward" not in shown + "".join(lines)


def test_eta_is_the_mean_pace_of_what_is_left() -> None:
    view = RunView(name="r", num_rollout=10)
    assert view.eta_seconds() is None
    for r, seconds in enumerate((1.0, 3.0)):
        view.add(
            {"kind": "train", "rollout_id": r, "reward_mean": 0.5, "interval_seconds": seconds}
        )
    assert view.eta_seconds() == 8 * 2.0


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([0.0] * 50 + [1.0] * 50, 2) == "▁█"
    assert sparkline([-3.0, 5.0], 10) == "▁█"
    assert sparkline([7.0, 7.0], 10) == "▁▁"
    assert sparkline([], 10) == ""


def test_resume_goes_on_in_the_same_file(
    run_dir: RunDir, capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    first = open_telemetry(run_dir, _config(), live=False)
    for record in records(9):
        first.emit(**record)
    first.close()
    second = open_telemetry(run_dir, _config(), resumed_at=5, live=False)
    for record in records(20):
        if record.get("rollout_id", 0) >= 5 and record["kind"] == "train":
            second.emit(**record)
    second.close()
    assert [r["rollout_id"] for r in read_records(run_dir.metrics) if r["kind"] == "train"] == list(
        range(20)
    )
    assert [r["rollout_id"] for r in read_records(run_dir.rolled_back) if r["kind"] == "train"] == [
        5,
        6,
        7,
        8,
    ]
    assert "rollout 6/20" in capsys.readouterr().out


def test_log_levels(tmp_path: Path, restored_logging: None) -> None:
    shown: list[str] = []
    write: Callable[[str, int], None] = lambda text, _: shown.append(text)  # noqa: E731
    stop = start_logging(tmp_path / "run.log", "debug", write)
    logging.getLogger("stages.a").debug("ours in detail")
    logging.getLogger("theirs").info("theirs in passing")
    logging.getLogger("theirs").error("theirs in trouble")
    logging.getLogger("py.warnings").warning("deprecated")
    stop()
    logging.getLogger("stages.a").error("after the run")
    assert shown == ["debug: ours in detail", "error: theirs in trouble"]
    log = (tmp_path / "run.log").read_text()
    assert "theirs in passing" in log
    assert "deprecated" in log
    assert "after the run" not in log


def test_tensorboard_holds_the_numbers(run_dir: RunDir, restored_logging: None) -> None:
    telemetry = open_telemetry(run_dir, _config(use_tensorboard=True), live=False)
    for record in records(12):
        telemetry.emit(**record)
    telemetry.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    # 0: all of them
    events = EventAccumulator(str(run_dir.tensorboard), size_guidance={"tensors": 0})
    events.Reload()
    rewards = [
        (e.step, pytest.approx(e.tensor_proto.float_val[0], abs=1e-6))
        for e in events.Tensors("train/reward_mean")
    ]
    assert rewards == [
        (r["rollout_id"], r["reward_mean"]) for r in records(12) if r["kind"] == "train"
    ]
    assert "eval/held-out/reward_mean" in events.Tags()["tensors"]
    train = [r for r in records(12) if r["kind"] == "train"]
    for name in ("staleness", "response_length", "rollout_log_ratio"):
        tag = f"train/histogram/{name}"
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == "histograms"
        drawn = [make_ndarray(e.tensor_proto) for e in events.Tensors(tag)]
        assert [rows[:, 2].tolist() for rows in drawn] == [
            list(r["histograms"][name]["counts"]) for r in train
        ]
    assert events.SummaryMetadata("sample/table").plugin_data.plugin_name == "text"
    tables = events.Tensors("sample/table")
    assert [e.step for e in tables] == list(range(12))
    table = make_ndarray(tables[-1].tensor_proto).item().decode().splitlines()
    assert len(table) == 2 + 4
    assert "&lt;yes&gt; &amp; so on" in table[-1]
    assert {line.count("|") for line in table} == {8}


def _trained_twice(run_dir: RunDir, **flags: bool) -> None:
    """Nine rollouts; a crash; from the checkpoint after five on to nine again; an orderly end; and
    on to twelve."""
    lives = ((None, 0, 9), (5, 5, 9), (9, 9, 12))
    for resumed_at, first, end in lives:
        telemetry = open_telemetry(run_dir, _config(**flags), resumed_at=resumed_at, live=False)
        for record in records(end):
            done = record.get("rollout_id", first) - (record["kind"] == "eval")
            if done >= first:
                telemetry.emit(**record)
        telemetry.emit("wait", wall_seconds=float(end), seconds=40.0)
        telemetry.close()


def test_a_resumed_curve_in_tensorboard_has_every_step_once(
    run_dir: RunDir, restored_logging: None
) -> None:
    _trained_twice(run_dir, use_tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir.tensorboard), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    assert [e.step for e in events.Tensors("train/reward_mean")] == list(range(12))
    for kind in ("push", "eval", "engine", "wait"):
        tag = next(tag for tag in tags if tag.startswith(f"{kind}/"))
        steps = [e.step for e in events.Tensors(tag)]
        assert steps == sorted(set(steps)), f"{tag}: steps are taken twice or go back"
    rows = read_records(run_dir.metrics)
    timed = [t for t in tags if t.startswith(("engine/", "wait/"))]
    steps = [e.step for tag in timed for e in events.Tensors(tag)]
    assert max(steps) == sum(r["kind"] in ("engine", "wait") for r in rows)
    assert len(events.Tensors("wait/seconds")) == 3


class _FakeWandb(types.ModuleType):
    """What is logged, by run id, as W&B takes it: steps that go back are dropped."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.logged: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def Settings(self, **_: Any) -> None: ...  # noqa: N802
    def Histogram(self, **_: Any) -> None: ...  # noqa: N802
    def Table(self, **_: Any) -> None: ...  # noqa: N802
    def teardown(self) -> None: ...

    def init(self, *, id: str, **_: Any) -> Any:
        rows = self.logged.setdefault(id, [])

        def log(values: dict[str, float], step: int) -> None:
            if not rows or step >= rows[-1][0]:
                rows.append((step, values))

        return types.SimpleNamespace(
            log=log, define_metric=lambda *_, **__: None, finish=lambda: None
        )


def test_a_resumed_curve_in_wandb_has_every_step_once(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    fake = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    _trained_twice(run_dir, use_wandb=True)
    first, second = fake.logged.values()  # the second began when rollouts were lost, and went on
    for rows, end in ((first, 9), (second, 12)):
        got = [v["train/rollout_id"] for _, v in rows if "train/rollout_id" in v]
        assert got == list(range(end))
        steps = [step for step, _ in rows]
        assert steps == sorted(set(steps))
    tables = [v["sample/rollout_id"] for rows in (first, second) for _, v in rows if TABLE in v]
    assert tables == [*range(9), *range(5, 12)]  # samples are not said again


@pytest.mark.slow
def test_wandb_works_offline(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(run_dir.path))  # wandb writes its cache there
    telemetry = open_telemetry(run_dir, _config(use_wandb=True), live=False)
    for record in records(3):
        telemetry.emit(**record)
    telemetry.close()
    files = list((run_dir.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    held = files[0].read_bytes()
    assert b"train/reward_mean" in held
    assert b"train/histogram/staleness" in held
    tables = list((run_dir.path / "wandb").glob("**/media/table/sample/table_*.table.json"))
    assert len(tables) == 3
    assert all(b"&lt;yes&gt;" not in t.read_bytes() for t in tables)
    assert any("<yes> & so on" in t.read_text() for t in tables)
    assert "off" not in run_dir.run_log.read_text()


def test_a_tracker_that_does_not_start_is_left_out(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch, restored_logging: None
) -> None:
    run_dir.tensorboard.write_text("a file where the folder should be")
    telemetry = open_telemetry(run_dir, _config(use_tensorboard=True), live=False)
    telemetry.emit("train", rollout_id=0)
    telemetry.close()
    assert "--use-tensorboard is off" in run_dir.run_log.read_text()
    assert len(read_records(run_dir.metrics)) == 1
