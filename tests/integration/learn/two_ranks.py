"""Run by test_megatron_parallel in two processes: every layout of two ranks in turn, the results of
each rank as JSON.

usage: two_ranks.py RANK PORT MODEL OUT WHAT, a key of ALGORITHMS or `options`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LAYOUTS: dict[str, dict[str, object]] = {
    "dp2": {},
    "dp2-distributed-optimizer": {"use_distributed_optimizer": True},
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2-sequence-parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
}
# Trained with on two ranks and on one, saved, restored, refused.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "tis": {"use_tis": True},
    "ppo": {
        "advantage_estimator": "ppo",
        "gamma": 0.95,
        "lambd": 0.9,
        "normalize_advantages": True,
    },
}
# Options that look at the whole step, the reference model and its checkpoint: the same under every
# layout.
OPTIONS: dict[str, dict[str, Any]] = {
    "m2po": {
        "off_policy_correction": "m2po",
        "use_kl_loss": True,
        "kl_loss_coef": 0.1,
        "kl_loss_type": "k3",
        "ref_update_interval": 1,
    },
    "normalised": {
        "off_policy_correction": "seq-tis",
        "correction_batch_normalize": True,
        "kl_coef": 0.1,
        "ess_lr_scaling": True,
    },
    "opob": {"advantage_estimator": "opob", "off_policy_correction": "seq-tis"},
    "kl-returns": {
        "advantage_estimator": "reinforce_plus_plus",
        "kl_coef": 0.1,
        "normalize_advantages": True,
    },
    "custom": {
        "loss_type": "custom_loss",
        "custom_loss_function_path": f"{Path(__file__)}:mean_log_prob",
    },
    "ppo-kl": {"advantage_estimator": "ppo", "gamma": 0.95, "kl_coef": 0.1},
}


def mean_log_prob(args: Any, batch: dict[str, Any], logits: Any, sum_of_sample_mean: Any) -> Any:
    """A loss that works on split vocabularies too: on the log-probs it is given."""
    loss = -sum_of_sample_mean(batch["current_log_probs"])
    return loss, {"mine": -loss}


def main(rank: int, port: int, model: Path, out: Path, what: str) -> None:
    from stages.learn.megatron import load

    load()
    import torch

    torch.set_num_threads(1)
    for layout, flags in LAYOUTS.items():
        if what == "options":
            for option, algorithm in OPTIONS.items():
                train(
                    f"{layout}.{option}",
                    make(rank, port, model, f"{layout}.{option}", flags, algorithm),
                    out,
                )
            refuse_off_policy(
                f"{layout}.on-policy",
                make(
                    rank, port, model, f"{layout}.on-policy", flags, {"true_on_policy_mode": True}
                ),
                out,
            )
        else:
            train(layout, make(rank, port, model, layout, flags, ALGORITHMS[what]), out)


def make(
    rank: int,
    port: int,
    model: Path,
    name: str,
    flags: dict[str, object],
    algorithm: dict[str, Any],
) -> Any:
    import torch

    from stages.learn.megatron.learner import MegatronRank
    from stages.learn.rendezvous import join_store
    from tests.integration.learn import learner_cases as cases

    store = torch.distributed.PrefixStore(name, join_store("127.0.0.1", port, 2))
    return MegatronRank(
        cases.settings(model, ranks=2, megatron=flags, **algorithm),
        rank=rank,
        world_size=2,
        store=store,
    )


def train(name: str, learner: Any, out: Path) -> None:
    """Two rollouts, one after them, the same once more from the checkpoint before it, one with
    fewer samples than ranks and steps, and one that is refused."""
    from pipeline.core.errors import LearnerError
    from tests.integration.learn import learner_cases as cases

    steps = [
        cases.make_step(part, ranks=learner.dp_size, micro_batches=2) for part in cases.halves()
    ]
    metrics = [cases.step(learner, cases.make_batch(*steps)) for _ in range(2)]
    learner.save(out / name)
    after = cases.step(learner, cases.make_batch(*steps))
    learner.load(out / name)
    resumed = cases.step(learner, cases.make_batch(*steps))
    few = cases.step(learner, cases.few(learner.dp_size))
    try:
        cases.step(
            learner,
            cases.make_batch(
                cases.make_step(cases.poisoned(), ranks=learner.dp_size, micro_batches=2)
            ),
        )
        refused = ""
    except LearnerError as error:
        refused = str(error)
    result = {
        "metrics": metrics,
        "after": after,
        "resumed": resumed,
        "few": few,
        "refused": refused,
    }
    (out / f"{name}.{learner.rank}.json").write_text(json.dumps(result))
    learner.close()


def refuse_off_policy(name: str, learner: Any, out: Path) -> None:
    """Rollout log-probs of no model's."""
    from pipeline.core.errors import LearnerError
    from tests.integration.learn import learner_cases as cases

    try:
        cases.step(
            learner,
            cases.make_batch(
                cases.make_step(cases.halves()[0], ranks=learner.dp_size, micro_batches=2)
            ),
        )
        said = ""
    except LearnerError as error:
        said = str(error)
    (out / f"{name}.{learner.rank}.json").write_text(json.dumps(said))
    learner.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
