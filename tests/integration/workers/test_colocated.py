"""Learner and engine in the same bundle of a cluster that has no other room, and weights that
engines find in the learner's memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.schedule.placement import Wanted
from pipeline.workers import pools as pools_module
from pipeline.workers.hosted_engine import HostedEngine
from pipeline.workers.learner_group import LearnerGroup
from pipeline.workers.pools import Pools
from tests.conftest import read_metrics, run_entry
from tests.integration.learn import learner_cases as cases
from tests.script_engine import ScriptSpec

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.filterwarnings("ignore")]


async def test_an_engine_is_hosted_where_the_learners_rank_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools_module, "SPARE_SLOTS", 0)
    model = cases.make_model("qwen3", tmp_path / "qwen3", tied=True)
    pools = Pools(
        Wanted(actor_num_nodes=1, actor_num_gpus_per_node=1, engines=(1,), colocate=True),
        address=None,
        on_gpu=False,
        object_store_bytes=100 << 20,
    )
    learner = LearnerGroup(cases.settings(model), pools)
    engine = HostedEngine(
        ScriptSpec(
            index=0,
            model_path=tmp_path,
            log_path=tmp_path / "engine-0.log",
            device="cpu",
            dtype="float32",
            mark=tmp_path / f"slipstream-test-{os.getpid()}-{tmp_path.name}",
        ),
        pools,
    )
    try:
        await learner.start()
        await engine.start(0, 60.0)
        assert await engine.healthy(deep=False)
        (place,) = pools.plan.engines[0]
        assert list(pools.ranks_beside(0)) == [0]
        assert place.rank == 0 and [node.free for node in pools.cluster.nodes()] == [0]
        step = await learner.step(cases.make_batch(cases.make_step(cases.halves()[0])))
        assert step.metrics["num_tokens"] > 0
    finally:
        await engine.stop()
        await learner.close()
        await pools.close()


def test_weights_are_taken_out_of_the_learners_memory(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    """One engine of two tensor-parallel ranks on the devices of two learner ranks. What it had
    loaded is wiped, and the first push must bring the same bits again by SGLang's own checksums;
    after later ones it samples by the very weights that the learner has trained."""
    before = set(Path("/dev/shm").iterdir())
    done = run_entry(
        *("--config", "quickstart", "--sft-steps", "0", "--eval-interval", "0"),
        *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--num-rollout", "4"),
        *("--colocate", "--async-buffer-size", "0", "--entropy-coef", "0.01"),
        *("--actor-num-gpus-per-node", "2", "--rollout-num-gpus-per-engine", "2"),
        *("--check-weight-update-equal", "--update-weight-buffer-size", "1000000"),
        *("--runs-dir", str(tmp_path), "--name", "c"),
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "c"
    assert "--weight-transport tensor" in (run / "config.yaml").read_text()
    assert "action=reset_tensors" in (run / "logs" / "engine-0.log").read_text()
    train, pushes = read_metrics(run, "train"), read_metrics(run, "push")
    assert [row["policy_version"] for row in train] == [0, 1, 2, 3] and len(pushes) == 4
    assert all(row["grad_norm"] > 0 for row in train)
    assert all(row["train_rollout_logprob_abs_diff_max"] < 1e-4 for row in train)
    assert set(Path("/dev/shm").iterdir()) <= before
