"""How much of a batch Ray's object store must hold at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from configs.schema import Config

SMALLEST = 256 << 20
AT_ONCE = 2  # batches: the next one is put while ranks still hold views of the last
TOKEN_BYTES = 8 + 1 + 4 + 4  # of TrainSample: token, mask, log-prob, advantage
SHARE_OF_FREE = 0.5  # engines and learner use shared memory too
_SHARED_MEMORY = Path("/dev/shm")


def object_store_bytes(config: Config, free: int | None = None) -> int:
    """Room for two rollouts of the longest samples that the flags allow, at least 256 MiB and at
    most half of the shared memory that is free (`free`, in bytes; None asks the system). What does
    not fit goes over the disk."""
    rollout = config.rollout
    longest = rollout.rollout_max_context_len or (
        (rollout.rollout_max_prompt_len or rollout.rollout_max_response_len)
        + rollout.rollout_max_response_len
    )
    samples = config.samples_per_rollout
    wanted = AT_ONCE * samples * longest * (TOKEN_BYTES + _expert_bytes(config))
    if free is None:
        free = shutil.disk_usage(_SHARED_MEMORY if _SHARED_MEMORY.is_dir() else "/tmp").free
    return max(SMALLEST, min(wanted, int(SHARE_OF_FREE * free)))


def _expert_bytes(config: Config) -> int:
    """Of a token's routed experts, where they are replayed: 16 bits each."""
    folder = config.model.hf_checkpoint
    if folder is None or not config.algorithm.use_rollout_routing_replay:
        return 0
    try:
        shape = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        return 2 * int(shape["num_hidden_layers"]) * int(shape["num_experts_per_tok"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
