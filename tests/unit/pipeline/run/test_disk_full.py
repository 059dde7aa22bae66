"""What says that the disk is full, and what does not."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.core.errors import ReplayBufferError
from pipeline.run import disk_full
from pipeline.run.disk_full import disk_full_error, is_disk_full


def raised_from(cause: BaseException) -> BaseException:
    error = ReplayBufferError("cannot be written")
    error.__cause__ = cause
    return BaseExceptionGroup("tasks", [ValueError("other"), error])


def test_found_however_deep(tmp_path: Path) -> None:
    file = str(tmp_path / "run" / "buffer" / "journal.log")
    for number in (errno.ENOSPC, errno.EDQUOT):
        error = raised_from(OSError(number, "full", file))
        assert is_disk_full(error)
        said = disk_full_error([error], tmp_path / "run", tmp_path / "run" / "checkpoints")
        assert said is not None and str(said).startswith(f"{file} cannot be written")
        assert f"--load {tmp_path / 'run'}" in str(said)
    other = raised_from(OSError(errno.EACCES, "no", file))
    assert not is_disk_full(other)
    assert disk_full_error([other], tmp_path, tmp_path) is None


def test_a_library_that_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's writer raises RuntimeError; what is free on the disk tells."""
    error = RuntimeError("PytorchStreamWriter failed writing file")
    checkpoints = tmp_path / "checkpoints"
    assert disk_full_error([error], tmp_path, checkpoints) is None
    monkeypatch.setattr(disk_full.shutil, "disk_usage", lambda _: SimpleNamespace(free=5))
    assert str(disk_full_error([error], tmp_path, checkpoints)).startswith(f"{checkpoints} cannot")


def test_at_least_two_checkpoints_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rollout_000002").mkdir()
    (tmp_path / "latest").symlink_to("rollout_000002")
    with (tmp_path / "rollout_000002" / "weights").open("wb") as file:
        file.truncate(100 << 20)
    said = disk_full_error([OSError(errno.ENOSPC, "full")], tmp_path, tmp_path)
    assert "Free at least 200 MiB" in str(said)
    shutil.rmtree(tmp_path / "rollout_000002")
    said = disk_full_error([OSError(errno.ENOSPC, "full")], tmp_path, tmp_path)
    assert "Free at least 64 MiB" in str(said)
