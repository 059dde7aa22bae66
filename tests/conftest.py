"""Shared by all tests: run the entry as a user does, and see that nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]


def entry_command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_async.py"), *flags]


def run_entry(*flags: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """`train_async.py FLAGS`, to its end."""
    return subprocess.run(
        entry_command(*flags), cwd=ROOT, capture_output=True, text=True, timeout=timeout, env={**os.environ, **env}, check=False
    )


def read_metrics(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [r for r in rows if kind is None or r["kind"] == kind]


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Fails when the test leaves a process of ours or a shared-memory file."""
    shm = Path("/dev/shm")
    before = set(shm.iterdir()) if shm.exists() else set()
    pids = set(psutil.pids())
    yield
    names = ("sglang", "raylet", "gcs_server", "ray::", "train_async")
    left = [p for p in psutil.process_iter(["pid", "cmdline", "status"]) if p.pid not in pids and p.info["status"] != psutil.STATUS_ZOMBIE]
    ours = [" ".join(p.info["cmdline"] or [])[:200] for p in left if any(n in " ".join(p.info["cmdline"] or []) for n in names)]
    assert not ours, f"processes left behind: {ours}"
    files = {f.name for f in (set(shm.iterdir()) if shm.exists() else set()) - before}
    assert not files, f"shared-memory files left behind: {files}"
