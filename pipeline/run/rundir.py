"""The run directory: `runs/NAME` and what lies where in it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LATEST = "latest"
FAILED_START = "failed-start"


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's folder.

    Making one of these touches no disk; `create_run_dir` and `open_run_dir` do.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: the truth, which every view is made from."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """A few samples of every rollout, for people to read: one JSON object a line."""
        return self.path / "samples.jsonl"

    @property
    def rolled_back(self) -> Path:
        """Lines that a resume took out of metrics.jsonl: rollouts trained after the checkpoint it
        went on from."""
        return self.path / "metrics.rolled-back.jsonl"

    @property
    def buffer(self) -> Path:
        return self.path / "buffer"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Output of child processes (engines, learner ranks)."""
        return self.path / "logs"

    @property
    def run_log(self) -> Path:
        return self.path / "run.log"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def trace(self) -> Path:
        return self.path / "trace.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def reward_picture(self) -> Path:
        return self.path / "reward.svg"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def create_run_dir(runs_dir: str | Path, name: str) -> RunDir:
    """A new folder `runs_dir/name`, or `name-2`, `name-3`, ... where that is taken; with `logs/`.

    Two runs that start at once get two folders (mkdir decides). Raises ConfigError for a name that
    is no plain folder name and for a `runs_dir` that cannot be written."""
    if not _NAME.fullmatch(name) or name in (LATEST, FAILED_START):
        raise ConfigError(
            f"--name {name!r}: expected letters, digits, '.', '_' and '-', not '{LATEST}' or"
            f" '{FAILED_START}'; give another --name"
        )
    root = Path(runs_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        run = RunDir(_make_numbered(root, name))
        run.logs.mkdir()
    except OSError as e:
        raise ConfigError(
            f"--runs-dir {root}: cannot make a run directory there ({e.strerror or e}); give"
            " another --runs-dir"
        ) from e
    return run


def point_latest(run: RunDir) -> None:
    """`latest` beside the run leads to it. A convenience: file systems without links, and
    somebody's own file of that name, are left alone."""
    link = run.path.with_name(LATEST)
    if link.exists() and not link.is_symlink():
        return
    new = run.path.with_name(f".{LATEST}-{os.getpid()}")
    try:
        new.unlink(missing_ok=True)
        new.symlink_to(run.name, target_is_directory=True)
        new.replace(link)
    except OSError:
        new.unlink(missing_ok=True)


def withdraw_run_dir(run: RunDir) -> Path | None:
    """Removes the folder of a run that never began. What its processes logged is kept in
    `failed-start` beside it, which holds the newest such run's; returns that folder, or None where
    nothing was logged."""
    if not any(run.logs.glob("*")):
        shutil.rmtree(run.path, ignore_errors=True)
        return None
    aside = run.path.with_name(FAILED_START)
    shutil.rmtree(aside, ignore_errors=True)
    return run.path.rename(aside)


def open_run_dir(path: str | Path) -> RunDir:
    """An existing run. Raises ConfigError when there is none at `path`."""
    path = Path(path)
    if not path.is_dir():
        raise ConfigError(
            f"{path}: no such run directory; expected a folder that holds metrics.jsonl or"
            " config.yaml"
        )
    run = RunDir(path.resolve())
    if not (run.metrics.exists() or run.config.exists()):
        raise ConfigError(
            f"{path}: not a run directory (neither metrics.jsonl nor config.yaml in it)"
        )
    return run


def _make_numbered(root: Path, name: str) -> Path:
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
