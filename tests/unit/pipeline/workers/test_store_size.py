"""Ray's object store holds two rollouts, whatever the flags make of them."""

from __future__ import annotations

import json
from pathlib import Path

from configs.schema import AlgorithmConfig, Config, ModelConfig, RolloutConfig
from pipeline.workers.store_size import SMALLEST, object_store_bytes

ROLLOUT = RolloutConfig(
    rollout_batch_size=64, n_samples_per_prompt=16, rollout_max_response_len=30_000
)
WANTED = 2 * 64 * 16 * (2 * 30_000) * 17
PLENTY = 1 << 40


def test_room_for_two_rollouts_of_the_longest_samples() -> None:
    assert object_store_bytes(Config(rollout=ROLLOUT), PLENTY) == WANTED
    assert object_store_bytes(Config(rollout=ROLLOUT), WANTED) == WANTED // 2
    assert object_store_bytes(Config(rollout=ROLLOUT), 0) == SMALLEST
    assert object_store_bytes(Config(), PLENTY) == SMALLEST
    assert SMALLEST <= object_store_bytes(Config(rollout=ROLLOUT)) <= WANTED


def test_replayed_experts_take_room(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 48, "num_experts_per_tok": 8}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = Config(
        rollout=ROLLOUT,
        model=ModelConfig(hf_checkpoint=str(tmp_path)),
        algorithm=AlgorithmConfig(use_rollout_routing_replay=True),
    )
    assert object_store_bytes(config, PLENTY) == WANTED // 17 * (17 + 2 * 48 * 8)
