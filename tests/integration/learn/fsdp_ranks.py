"""Run by test_fsdp in two processes: trained with, saved, resumed, refused; what each rank found as
JSON.

usage: fsdp_ranks.py RANK PORT MODEL SAVED OUT SEEING. SAVED: a snapshot that one rank wrote;
SEEING: a model that sees."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

ALGORITHM: dict[str, Any] = {
    "off_policy_correction": "m2po",
    "use_kl_loss": True,
    "kl_loss_coef": 0.1,
    "kl_loss_type": "k3",
    "ref_update_interval": 2,
}


def main(rank: int, port: int, model: Path, saved: Path, out: Path, seeing: Path) -> None:
    from stages.learn.fsdp import load

    load()
    import torch

    torch.set_num_threads(1)
    from stages.learn.fsdp import start_rank
    from stages.learn.rendezvous import join_store
    from tests.integration.learn import learner_cases as cases
    from tests.integration.learn.test_fsdp import settings_of

    store = join_store("127.0.0.1", port, 2)
    learner = start_rank(
        settings_of("fsdp", model, ranks=2, **ALGORITHM), rank=rank, world_size=2, store=store
    )
    steps = [cases.make_step(part, ranks=2, micro_batches=2) for part in cases.halves()]
    found: dict[str, Any] = {
        "trained": [cases.step(learner, cases.make_batch(*steps, rollout_id=i)) for i in range(2)]
    }
    learner.save(out / "pair")
    found["sent"] = [
        learner.describe_sent(),
        [cases.meta(name, tensor) for name, tensor in learner.sent_weights()],
    ]
    found["after"] = cases.step(learner, cases.make_batch(*steps, rollout_id=2))
    learner.load(out / "pair")
    found["resumed"] = cases.step(learner, cases.make_batch(*steps, rollout_id=2))
    found["refused"] = refusal(
        learner, cases.make_batch(cases.make_step(cases.poisoned(), ranks=2, micro_batches=2))
    )
    found["few"] = cases.step(learner, cases.few(2))
    found["miscut"] = refusal(learner, cases.make_batch(cases.make_step(cases.halves()[0])))
    learner.load(saved)
    found["from_one"] = cases.step(learner, cases.make_batch(*steps, rollout_id=2))
    learner.close()
    store = torch.distributed.PrefixStore("vision", join_store("127.0.0.1", port, 2))
    learner = start_rank(
        settings_of("fsdp", seeing, ranks=2, use_tis=True), rank=rank, world_size=2, store=store
    )
    found["vision"] = [
        cases.step(learner, cases.make_batch(vision_step(seeing, 2))) for _ in range(3)
    ]
    learner.close()
    (out / f"{rank}.json").write_text(json.dumps(found))


def vision_step(seeing: Path, ranks: int) -> Any:
    """Of two ranks one has all images, in one of its two micro-batches; the other has text."""
    from tests.integration.learn import learner_cases as cases
    from tests.integration.learn import vision_cases

    picture, _, _, text = vision_cases.make_samples(seeing)
    texts = [dataclasses.replace(text, index=i) for i in (7, 8, 9)]
    return cases.make_step([picture, *texts], ranks=ranks, micro_batches=2)


def refusal(learner: Any, batch: Any) -> str:
    from pipeline.core.errors import LearnerError
    from tests.integration.learn import learner_cases as cases

    try:
        cases.step(learner, batch)
    except LearnerError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:7]))
