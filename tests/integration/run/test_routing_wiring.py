"""A run with R3 asks its engines, its client and its learner for the same thing.

Nothing is started.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.command_line.loader import load_config
from configs.schema import flat_args
from pipeline.core.errors import ConfigError
from pipeline.core.time import MonotonicTime
from pipeline.run.resume import ResumePoint
from pipeline.schedule.clock import RolloutClock
from pipeline.wiring.backend import Backend
from pipeline.wiring.context import RunContext
from pipeline.wiring.real import real_backend
from tests.flags import later_wins

DATA = ["--prompt-data", "reasoning_gym:spell_backward", "--device", "cpu"]


def backend_of(logs: Path, *flags: str) -> Backend:
    config = load_config(later_wins([*DATA, *flags]))
    run_dir: Any = SimpleNamespace(logs=logs, path=logs)
    clock = RolloutClock(
        rollout_batch_size=8, async_buffer_size=0, update_weights_interval=1, num_rollout=1
    )
    args = flat_args(config)
    return real_backend(
        RunContext(
            config=config,
            args=args,
            run_dir=run_dir,
            resumed=ResumePoint(),
            state=None,
            clock=clock,
            time=MonotonicTime(),
        )
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flag", [(), ("--use-rollout-routing-replay",), ("--use-routing-replay",)])
def test_only_r3_asks_engines_for_experts(tmp_path: Path, flag: tuple[str, ...]) -> None:
    backend: Any = backend_of(
        tmp_path, "--hf-checkpoint", "tiny:configs/models/tiny-qwen3-moe.yaml", *flag
    )
    asked = bool(flag) and "rollout" in flag[0]
    assert backend.generate._client._experts_shape == ((2, 2) if asked else None)
    (slot,) = backend.generate._client._pool._slots.values()
    assert slot.engine.spec.returns_experts == asked
    assert backend.learner._settings.algorithm.use_rollout_routing_replay == asked


@pytest.mark.filterwarnings("ignore")
def test_a_dense_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no experts"):
        backend_of(
            tmp_path,
            "--hf-checkpoint",
            "tiny:configs/models/tiny-qwen3.yaml",
            "--use-rollout-routing-replay",
        )
