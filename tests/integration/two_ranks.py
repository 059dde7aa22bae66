"""Run by test_megatron_parallel in two processes: every layout of two ranks in turn, its results as JSON from rank 0.

usage: two_ranks.py RANK PORT MODEL OUT [ALGORITHM], a key of ALGORITHMS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LAYOUTS: dict[str, dict[str, object]] = {
    "dp2": {},
    "dp2-distributed-optimizer": {"use_distributed_optimizer": True},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2-sequence-parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}

ALGORITHMS: dict[str, dict[str, object]] = {
    "tis": {"use_tis": True},
    "ppo": {"advantage_estimator": "ppo", "gamma": 0.95, "lambd": 0.9, "normalize_advantages": True},
}


def main(rank: int, port: int, model: Path, out: Path, algorithm: str = "tis") -> None:
    from stages.learn.megatron import load

    load()
    import torch

    from pipeline.errors import LearnerError
    from stages.learn.megatron.learner import MegatronRank
    from stages.learn.megatron.parallel import join_store
    from tests.integration import learner_cases as cases

    torch.set_num_threads(1)
    for name, flags in LAYOUTS.items():
        store = torch.distributed.PrefixStore(name, join_store("127.0.0.1", port, 2))
        settings = cases.settings(model, ranks=2, megatron=flags, **ALGORITHMS[algorithm])
        learner = MegatronRank(settings, rank=rank, world_size=2, store=store)
        steps = [cases.make_step(part, ranks=learner.dp_size, micro_batches=2) for part in cases.halves()]
        metrics = [learner.step(cases.make_batch(*steps)) for _ in range(2)]
        learner.save(out / name)
        after = learner.step(cases.make_batch(*steps))
        learner.load(out / name)
        resumed = learner.step(cases.make_batch(*steps))
        try:
            learner.step(cases.make_batch(cases.make_step(cases.poisoned(), ranks=learner.dp_size, micro_batches=2)))
            refused = ""
        except LearnerError as error:
            refused = str(error)
        result = {"metrics": metrics, "after": after, "resumed": resumed, "refused": refused}
        (out / f"{name}.{rank}.json").write_text(json.dumps(result))
        learner.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), *sys.argv[5:])
