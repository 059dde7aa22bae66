"""What the flags of W&B and TensorBoard set; and that a key is nowhere to be read."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.command_line.dump import dump_config
from configs.command_line.loader import load_config
from configs.schema import Config, TrackingConfig, flat_args
from pipeline.core.errors import ConfigError
from pipeline.run.rundir import RunDir, create_run_dir
from pipeline.telemetry.start import open_telemetry, tensorboard_folder

KEY = "0123456789abcdef" * 2 + "01234567"


class FakeWandb:
    """Takes what a run is begun with; refuses it where it is told to."""

    def __init__(self, refuses: bool = False) -> None:
        self.begun: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        self.refuses = refuses

    def Settings(self, **given: Any) -> str:  # noqa: N802
        self.settings = given
        return "settings"

    def init(self, **given: Any) -> Any:
        if self.refuses:
            raise ValueError(f"the key {self.settings['api_key']} is none of ours")
        self.begun = given
        return self

    def define_metric(self, *_: Any, **__: Any) -> None: ...
    def finish(self) -> None: ...
    def teardown(self) -> None: ...


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return create_run_dir(tmp_path, "r")


def begin(run_dir: RunDir, fake: FakeWandb, monkeypatch: Any, **flags: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = Config(tracking=TrackingConfig(use_wandb=True, **flags))
    open_telemetry(run_dir, config, live=False).close()


def test_flags_say_what_a_wandb_run_is_begun_with(
    run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setattr(sys, "argv", ["train_async.py", "--wandb-key", KEY, f"--wandb-key={KEY}"])
    begin(
        run_dir,
        fake,
        monkeypatch,
        wandb_team="team",
        wandb_mode="offline",
        wandb_key=KEY,
        wandb_host="https://wandb.example.org",
        wandb_dir=str(tmp_path / "w"),
        wandb_run_id="abc",
    )
    wanted = {"entity": "team", "mode": "offline", "id": "abc", "dir": str(tmp_path / "w")}
    assert {name: fake.begun[name] for name in wanted} == wanted
    assert (tmp_path / "w").is_dir()
    assert fake.settings["api_key"] == KEY
    assert fake.settings["base_url"] == "https://wandb.example.org"
    assert KEY not in str(fake.begun["config"])
    # which W&B reads when a run begins
    assert sys.argv == ["train_async.py", "--wandb-key", "***", "--wandb-key=***"]


def test_without_flags_the_environment_decides(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    begin(run_dir, fake, monkeypatch)
    assert fake.begun["mode"] is None and fake.begun["entity"] is None
    assert fake.begun["dir"] == str(run_dir.path)
    assert not {"api_key", "base_url"} & set(fake.settings)


def test_a_refused_key_is_not_repeated_in_the_log(
    run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(run_dir, FakeWandb(refuses=True), monkeypatch, wandb_key=KEY)
    log = run_dir.run_log.read_text()
    assert "--use-wandb is off" in log and "the key *** is none of ours" in log
    assert KEY not in log


def test_a_key_is_neither_written_down_nor_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = load_config(["--mock", "--wandb-key", KEY])
    assert config.tracking.wandb_key == KEY
    for text in (dump_config(config), str(vars(flat_args(config))), repr(config), caplog.text):
        assert KEY not in text
    for wrong in (["b"], ["--wandb-key", "b"]):
        with pytest.raises(ConfigError, match=r"--wandb-key \*\*\*") as caught:
            load_config(["--mock", "--wandb-key", KEY, *wrong])
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        ({}, None),
        ({"tensorboard_dir": "all"}, "all/r"),
        ({"tb_project_name": "p"}, "tensorboard_log/p/r"),
        ({"tb_project_name": "p", "tb_experiment_name": "e"}, "tensorboard_log/p/e"),
        ({"tensorboard_dir": "all", "tb_project_name": "p"}, "all/p/r"),
    ],
)
def test_events_lie_in_a_folder_of_the_runs_own(
    run_dir: RunDir, flags: dict[str, str], folder: str | None
) -> None:
    found = tensorboard_folder(run_dir, TrackingConfig(**flags))
    assert found == (run_dir.tensorboard if folder is None else Path(folder))


def test_a_run_that_shares_a_folder_takes_nothing_out_of_it(
    run_dir: RunDir, tmp_path: Path
) -> None:
    def begins(**flags: Any) -> int:
        where = str(tmp_path / "all")
        tracking = TrackingConfig(use_tensorboard=True, tensorboard_dir=where, **flags)
        telemetry = open_telemetry(run_dir, Config(tracking=tracking), live=False)
        telemetry.emit("push", rollout_id=0, policy_version=1, seconds=1.0)
        telemetry.close()
        return len(list((tmp_path / "all").glob("*/events.out.tfevents.*")))

    assert (begins(tb_experiment_name="e"), begins(tb_experiment_name="e")) == (1, 2)
