"""Brings the learner's weights to every engine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import ClusterConfig
from pipeline.core.errors import ConfigError
from pipeline.core.protocols import WeightLender, WeightSender
from pipeline.core.time import TimeSource

if TYPE_CHECKING:
    from stages.publish.delta import NodesPool
    from stages.publish.rolling import RollingTransport
    from stages.publish.tensor import Beside


def make_transport(
    pool: NodesPool,
    sender: WeightSender,
    cluster: ClusterConfig,
    *,
    device: str,
    folder: Path | None = None,
    lender: WeightLender | None = None,
    beside: Beside | None = None,
    headers: Mapping[str, str] | None = None,
    time: TimeSource | None = None,
) -> RollingTransport:
    """The transport that --weight-transport names. `device` "cuda" means NCCL, "cpu" gloo.
    `folder` (disk and delta; default: a temporary one) must be visible to learner and engines.
    `lender`, `beside`: for the transport tensor (see TensorTransport). `headers`: of every
    request to an engine."""
    if cluster.weight_transport in ("disk", "delta"):
        from stages.publish.delta import DeltaTransport
        from stages.publish.disk import DiskTransport

        folder = folder or Path(tempfile.mkdtemp(prefix="slipstream-weights-"))
        kind = DeltaTransport if cluster.weight_transport == "delta" else DiskTransport
        return kind(pool, sender, cluster, folder, headers=headers, time=time)
    if cluster.weight_transport == "tensor":
        from stages.publish.tensor import TensorTransport

        assert lender is not None and beside is not None
        return TensorTransport(pool, lender, cluster, beside, headers=headers, time=time)
    if cluster.colocate and device == "cuda":
        raise ConfigError(
            "--weight-transport distributed with --colocate on GPUs: NCCL refuses two ranks on one"
            " device. Use --weight-transport tensor (or disk)"
        )
    from stages.publish.distributed import DistributedTransport

    backend = "nccl" if device == "cuda" else "gloo"
    return DistributedTransport(pool, sender, cluster, backend=backend, headers=headers, time=time)
