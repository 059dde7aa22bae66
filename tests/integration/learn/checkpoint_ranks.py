"""Run by test_checkpoint_layouts in four processes: checkpoints of other layouts loaded, trained
on, saved again; saves beside training.

usage: checkpoint_ranks.py RANK PORT MODEL OUT
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

LAYOUTS: dict[str, dict[str, object]] = {
    "tp2-pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "tp2-dp2": {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True},
}


def source(flags: dict[str, object]) -> str:
    """The one rank's checkpoint of the same kind of optimizer."""
    return "distributed" if flags.get("use_distributed_optimizer") else "plain"


def main(rank: int, port: int, model: Path, out: Path) -> None:
    from stages.learn.megatron import load

    load()
    import torch

    torch.set_num_threads(1)
    for layout, flags in LAYOUTS.items():
        learner = make(rank, port, model, layout, flags)
        learner.load(out / source(flags))
        learner.export_hf(out / layout / "loaded")
        write(out, layout, "loaded", learner, step(learner, 1))
        learner.save(out / layout / "saved")
        write(out, layout, "saved", learner, step(learner, 2))
        beside(learner, out / layout, model)
        learner.close()


def make(rank: int, port: int, model: Path, name: str, flags: dict[str, object]) -> Any:
    import torch

    from stages.learn.megatron.learner import MegatronRank
    from stages.learn.rendezvous import join_store
    from tests.integration.learn import learner_cases as cases

    store = torch.distributed.PrefixStore(name, join_store("127.0.0.1", port, 4))
    return MegatronRank(
        settings(cases, model, ranks=4, megatron=flags), rank=rank, world_size=4, store=store
    )


def settings(cases: Any, model: Path, **more: Any) -> Any:
    """With a schedule that moves and a reference model."""
    from configs.schema import OptimConfig

    optim = OptimConfig(lr_decay_style="cosine", lr_warmup_iters=2)
    return cases.settings(
        model, optim=optim, steps=20, use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="k3", **more
    )


def step(learner: Any, seed: int) -> dict[str, float]:
    from tests.integration.learn import learner_cases as cases

    samples = cases.make_samples(cases.LENGTHS, seed=seed)
    return dict(
        cases.step(
            learner,
            cases.make_batch(
                cases.make_step(samples, ranks=learner.dp_size, micro_batches=2), rollout_id=seed
            ),
        )
    )


def beside(learner: Any, out: Path, model: Path) -> None:
    """A step is taken after the state was copied and before a byte is written; then a save that
    fails on one rank."""
    from pipeline.core.errors import CheckpointError
    from stages.learn.megatron import async_save

    learner.save(out / "before")
    gate, real = threading.Event(), async_save._write

    def held_up(*args: Any) -> Any:
        assert gate.wait(60)
        return real(*args)

    async_save._write = held_up
    learner.begin_save(out / "beside", out / "beside" / "hf")
    after = step(learner, 3)
    early = learner.save_written()
    gate.set()
    learner.finish_save()
    learner.load(out / "beside")
    again = step(learner, 3)

    def full(*args: Any) -> Any:
        if learner.rank == 1:
            raise OSError(28, "No space left on device")
        return real(*args)

    async_save._write = full
    learner.begin_save(out / "failed", None)
    try:
        learner.finish_save()
        said = ""
    except CheckpointError as error:
        said = str(error)
    async_save._write = real
    learner.begin_save(out / "recovered", None)
    learner.finish_save()
    (out / f"beside.{learner.rank}.json").write_text(
        json.dumps({"after": after, "again": again, "early": early, "said": said})
    )


def write(out: Path, layout: str, name: str, learner: Any, metrics: dict[str, float]) -> None:
    if learner.rank == 0:
        (out / layout / f"{name}.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
