"""Run by test_routing_layouts in two processes: routing replay under every layout of two ranks,
what it measured as JSON.

usage: routing_ranks.py RANK PORT MODEL OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FULL: dict[str, object] = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
LAYOUTS: dict[str, dict[str, object]] = {
    "dp2-ep2": {"expert_model_parallel_size": 2},
    "tp2-sp-ep2": {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "expert_model_parallel_size": 2,
        "expert_tensor_parallel_size": 1,
    },
    "cp2": {"context_parallel_size": 2},
    "pp2-vpp2-recompute": {
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        **FULL,
    },
}
REPLAYS: dict[str, dict[str, Any]] = {
    "engine": {"use_rollout_routing_replay": True},
    "consumption": {"use_routing_replay": True},
}
OPTIMIZER = {"lr": 1e-2, "adam_eps": 1e-4}


def train(learner: Any) -> dict[str, float]:
    """One rollout of two optimizer steps, in micro-batches of which several are under way in a
    pipeline."""
    from tests.integration.learn import learner_cases as cases
    from tests.integration.learn import routing_cases as routing

    samples = routing.with_random_experts(cases.make_samples([*cases.LENGTHS, *cases.LENGTHS]))
    halves = samples[:8], samples[8:]
    return dict(
        cases.step(
            learner,
            cases.make_batch(
                *(cases.make_step(h, ranks=learner.dp_size, micro_batches=4) for h in halves)
            ),
        )
    )


def main(rank: int, port: int, model: Path, out: Path) -> None:
    from stages.learn.megatron import load

    start = load()
    import torch

    from stages.learn.rendezvous import join_store
    from tests.integration.learn import learner_cases as cases

    torch.set_num_threads(1)
    store = join_store("127.0.0.1", port, 2)
    found = {}
    for layout, flags in LAYOUTS.items():
        for replay, algorithm in REPLAYS.items():
            part = torch.distributed.PrefixStore(f"{layout}.{replay}", store)
            settings = cases.settings(model, ranks=2, megatron={**OPTIMIZER, **flags}, **algorithm)
            learner = start(settings, rank=rank, world_size=2, store=part)
            found[f"{layout} {replay}"] = train(learner)
            learner.close()
    (out / f"found.{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
