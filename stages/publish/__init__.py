"""Brings the learner's weights to every engine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import ClusterConfig
from pipeline.core.protocols import WeightSender
from pipeline.core.time import TimeSource

if TYPE_CHECKING:
    from stages.publish.delta import NodesPool
    from stages.publish.rolling import RollingTransport


def make_transport(
    pool: NodesPool,
    sender: WeightSender,
    cluster: ClusterConfig,
    *,
    device: str,
    folder: Path | None = None,
    headers: Mapping[str, str] | None = None,
    time: TimeSource | None = None,
) -> RollingTransport:
    """The transport that --weight-transport names. `device` "cuda" means NCCL, "cpu" gloo.
    `folder` (disk and delta; default: a temporary one) must be visible to learner and engines.
    `headers`: of every request to an engine."""
    if cluster.weight_transport != "distributed":
        from stages.publish.delta import DeltaTransport
        from stages.publish.disk import DiskTransport

        folder = folder or Path(tempfile.mkdtemp(prefix="slipstream-weights-"))
        kind = DeltaTransport if cluster.weight_transport == "delta" else DiskTransport
        return kind(pool, sender, cluster, folder, headers=headers, time=time)
    from stages.publish.distributed import DistributedTransport

    backend = "nccl" if device == "cuda" else "gloo"
    return DistributedTransport(pool, sender, cluster, backend=backend, headers=headers, time=time)
