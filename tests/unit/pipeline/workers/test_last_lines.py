"""What a process that died had written last, also on another node of a cluster that was joined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.util.state

from pipeline.workers.ray_cluster import RayCluster

SAID = ":actor_name:RankActor\nTraceback\n\n  File x\nRuntimeError: NCCL error\n"


def cluster(address: str | None) -> RayCluster:
    return RayCluster(address, devices=1, on_gpu=False, object_store_bytes=1)


def test_a_joined_cluster_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def get_log(**options: Any) -> Iterator[str]:
        asked.append(options)
        yield SAID[:20]
        yield SAID[20:]

    monkeypatch.setattr(ray.util.state, "get_log", get_log)
    lines = cluster("10.0.0.1:6379").last_lines(4711, "n0de", count=2)
    assert lines == ["  File x", "RuntimeError: NCCL error"]
    assert (asked[0]["node_id"], asked[0]["pid"], asked[0]["suffix"]) == ("n0de", 4711, "err")


def test_a_cluster_without_a_dashboard_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_log(**_: Any) -> Iterator[str]:
        raise ConnectionError("no dashboard")
        yield

    monkeypatch.setattr(ray.util.state, "get_log", get_log)
    assert cluster("10.0.0.1:6379").last_lines(4711, "n0de") == []


def test_ones_own_clusters_files_are_read(tmp_path: Path) -> None:
    own = cluster(None)
    own.folder = tmp_path
    logs = tmp_path / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker-abc-01-4711.err").write_text(SAID)
    (logs / "worker-abc-01-4712.err").write_text("another's\n")
    assert own.last_lines(4711, "n0de", count=1) == ["RuntimeError: NCCL error"]
