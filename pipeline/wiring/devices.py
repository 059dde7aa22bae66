"""Which devices and which number format a run takes."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

from configs.schema import Config
from pipeline.core.devices import has_gpu

logger = logging.getLogger(__name__)


class DeviceSharing(NamedTuple):
    """Which side leaves the devices that learner and engines share."""

    train: bool
    rollout: bool


def device_sharing(config: Config) -> DeviceSharing:
    """What the flags say; without them both sides leave under --colocate on GPUs, as in slime."""
    c = config.cluster
    default = c.offload or (c.colocate and device_of(config) == "cuda")
    train = default if c.offload_train is None else c.offload_train
    rollout = default if c.offload_rollout is None else c.offload_rollout
    if rollout and device_of(config) == "cpu":
        logger.warning(
            "--offload-rollout: SGLang has no memory saver on a CPU, the engines keep theirs"
        )
    return DeviceSharing(train, rollout)


def device_of(config: Config) -> Literal["cpu", "cuda"]:
    device = config.model.device
    if device != "auto":
        return device
    return "cuda" if has_gpu() else "cpu"


def dtype_of(config: Config, device: str) -> Literal["float32", "bfloat16"]:
    dtype = config.model.dtype
    if dtype != "auto":
        return dtype
    return "bfloat16" if device == "cuda" else "float32"
