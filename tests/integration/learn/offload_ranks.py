"""Run by test_learner_offload in two processes: steps between which the device is given up, with
Megatron's overlapped collectives.

usage: offload_ranks.py RANK PORT MODEL OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OVERLAPPED = {
    "use_distributed_optimizer": True,
    "overlap_param_gather": True,
    "overlap_grad_reduce": True,
}


def main(rank: int, port: int, model: Path, out: Path) -> None:
    from stages.learn.megatron import load

    load()
    import torch

    from stages.learn.megatron.learner import MegatronRank
    from stages.learn.rendezvous import join_store
    from tests.integration.learn import learner_cases as cases

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in ("stays", "leaves"):
        store = torch.distributed.PrefixStore(name, join_store("127.0.0.1", port, 2))
        flags = {
            "use_tis": True,
            "use_kl_loss": True,
            "kl_loss_coef": 0.1,
            "log_probs_max_tokens_per_gpu": 5000,
            "megatron": OVERLAPPED,
        }
        learner = MegatronRank(
            cases.settings(model, ranks=2, **flags), rank=rank, world_size=2, store=store
        )
        batch = cases.make_batch(
            *(cases.make_step(part, ranks=2, micro_batches=2) for part in cases.halves())
        )
        metrics = []
        for _ in range(3):
            metrics.append(
                {k: v for k, v in cases.step(learner, batch).items() if k not in cases.MEASURED}
            )
            if name == "leaves":
                learner.offload()
                assert all(
                    p.untyped_storage().nbytes() == 0 for p in learner._built.ddp[0].parameters()
                )
                pushed = dict(learner.hf_weights())
        learner.onload()
        weights = cases.weights_of(learner)
        if name == "leaves":
            assert all(torch.equal(pushed[key], tensor) for key, tensor in weights.items())
        found[name] = {
            "metrics": metrics,
            "weights": {key: tensor.double().sum().item() for key, tensor in weights.items()},
        }
        learner.close()
    (out / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
