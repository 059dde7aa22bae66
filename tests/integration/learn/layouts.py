"""Run by test_megatron_layouts in four processes: every case in turn, what each rank found as JSON,
its weights as safetensors.

Cases of two ranks run on two pairs of processes side by side. usage: layouts.py RANK PORT MODELS
OUT [CASE...]"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORLD = 4
# Adam's step is about the learning rate whatever the gradient; with this epsilon a gradient of
# rounding errors moves nothing.
OPTIMIZER: dict[str, object] = {"lr": 1e-3, "adam_eps": 1e-5}

OBJECTIVES: dict[str, dict[str, Any]] = {
    "token-mean": {"calculate_per_token_loss": True, "use_tis": True, "entropy_coef": 0.01},
    # Sequence-level importance ratios, sequence-level correction normalised over the batch, KL to
    # the reference.
    "gspo": {
        "advantage_estimator": "gspo",
        "off_policy_correction": "seq-tis",
        "correction_batch_normalize": True,
        "use_kl_loss": True,
        "kl_loss_coef": 0.1,
        "kl_loss_type": "k3",
    },
    "ppo": {
        "advantage_estimator": "ppo",
        "gamma": 0.95,
        "lambd": 0.9,
        "normalize_advantages": True,
    },
    "custom": {
        "loss_type": "custom_loss",
        "custom_loss_function_path": f"{Path(__file__)}:from_logits",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    ranks: int
    micro_batches: int = 2
    optim: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, object] = field(default_factory=dict)
    objective: str = "token-mean"
    model: str = "dense"


TP2: dict[str, object] = {"tensor_model_parallel_size": 2}
PP2: dict[str, object] = {"pipeline_model_parallel_size": 2}
CP2: dict[str, object] = {"context_parallel_size": 2}
SP: dict[str, object] = {"sequence_parallel": True}
VPP2: dict[str, object] = {"virtual_pipeline_model_parallel_size": 2}
DISTRIBUTED: dict[str, object] = {"use_distributed_optimizer": True}
SELECTIVE: dict[str, object] = {"recompute_granularity": "selective"}
BLOCK: dict[str, object] = {
    "recompute_granularity": "full",
    "recompute_method": "block",
    "recompute_num_layers": 1,
}
FULL: dict[str, object] = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}

CASES: dict[str, Case] = {
    "tp2-pp2": Case(ranks=4, flags={**TP2, **PP2}),
    "tp2-sp-cp2": Case(ranks=4, flags={**TP2, **SP, **CP2}, objective="gspo"),
    "cp2-dp2": Case(ranks=4, flags={**CP2, **DISTRIBUTED}, objective="gspo"),
    "tp2": Case(ranks=2, flags=TP2),
    "tp2-sp": Case(ranks=2, flags={**TP2, **SP}, objective="gspo"),
    "pp2": Case(ranks=2, flags=PP2),
    "pp2-vpp2": Case(ranks=2, flags={**PP2, **VPP2}),
    # The other way to say it; three micro-batches, which the learner makes four.
    "pp2-vpp2-by-layers": Case(
        ranks=2, flags=PP2, optim={"num_layers_per_virtual_pipeline_stage": 1}, micro_batches=3
    ),
    "dp2": Case(ranks=2, flags=DISTRIBUTED),
    "cp2": Case(ranks=2, flags=CP2),
    "cp2-gspo": Case(ranks=2, flags=CP2, objective="gspo"),
    "cp2-ppo": Case(ranks=2, flags=CP2, objective="ppo"),
    "cp2-custom": Case(ranks=2, flags=CP2, objective="custom"),
    "cp2-recompute": Case(ranks=2, flags={**CP2, **SELECTIVE}),
    "tp2-sp-recompute": Case(ranks=2, flags={**TP2, **SP, **FULL}),
    "pp2-vpp2-recompute": Case(ranks=2, flags={**PP2, **VPP2, **BLOCK}, objective="gspo"),
}


EP2: dict[str, object] = {"expert_model_parallel_size": 2}
ETP1: dict[str, object] = {"expert_tensor_parallel_size": 1}
ETP2: dict[str, object] = {"tensor_model_parallel_size": 1, "expert_tensor_parallel_size": 2}
CASES |= {
    "pp2-ep2": Case(ranks=4, flags={**PP2, **EP2}, model="experts"),
    "ep2": Case(ranks=2, flags={**EP2, **DISTRIBUTED}, model="experts"),
    "tp2-sp-ep2": Case(ranks=2, flags={**TP2, **SP, **EP2, **ETP1}, model="experts"),
    "tp2-sp-etp1": Case(ranks=2, flags={**TP2, **SP, **ETP1}, model="experts"),
    "etp2": Case(ranks=2, flags=ETP2, model="experts"),
    "cp2-ep2": Case(ranks=2, flags={**CP2, **EP2}, objective="gspo", model="experts"),
}


def make_models(folder: Path) -> None:
    """dense: four layers, so that two virtual stages of two ranks have one each; experts: two
    layers, four experts."""
    from tests.integration.learn import family_cases
    from tests.integration.learn import learner_cases as cases

    cases.make_model("qwen3", folder / "dense", tied=True, num_layers=4)
    family_cases.make_family("qwen3_moe", folder / "experts")


def from_logits(args: Any, batch: dict[str, Any], logits: Any, sum_of_sample_mean: Any) -> Any:
    """A loss on the logits themselves."""
    import torch

    targets = batch["targets"][:, None]
    log_probs = torch.log_softmax(logits[0], -1).gather(-1, targets)[:, 0]
    margin = logits[0].amax(-1) - logits[0].gather(-1, targets)[:, 0]
    return sum_of_sample_mean(0.1 * margin - log_probs * torch.cat(batch["advantages"])), {
        "margin": margin.sum()
    }


def train(learner: Any, micro_batches: int = 2) -> dict[str, Any]:
    """Three rollouts of two optimizer steps; the last one's metrics are of weights that all the
    others made."""
    from tests.integration.learn import learner_cases as cases

    metrics = []
    for seed in range(3):
        samples = cases.make_samples(cases.LENGTHS, seed)
        parts = [
            cases.make_step(part, ranks=learner.dp_size, micro_batches=micro_batches)
            for part in (samples[:4], samples[4:])
        ]
        metrics.append(cases.step(learner, cases.make_batch(*parts, rollout_id=seed)))
    return {"metrics": metrics, "log_probs": log_probs_by_sample(learner)}


def log_probs_by_sample(learner: Any) -> dict[int, list[float]]:
    """Of the trained tokens, under the weights as they are now; nothing on stages before the
    last."""
    from pipeline.core.batch_share import step_shares
    from stages.learn.log_prob_pass import Prepared
    from tests.integration.learn import learner_cases as cases

    step = cases.make_step(
        cases.make_samples(cases.LENGTHS, 7), ranks=learner.dp_size, micro_batches=2
    )
    packed = [
        Prepared(mb)
        for mb in learner._passes.pack(step_shares(step, learner.dp_size)[learner.dp_rank])
    ]
    out = {}
    for prepared, found in zip(packed, learner._passes.log_probs_now(packed), strict=True):
        if found is not None:
            parts = found.split(prepared.batch.token_counts.tolist())
            out.update(
                {
                    int(i): p.tolist()
                    for i, p in zip(prepared.batch.sample_indices, parts, strict=True)
                }
            )
    return out


def main(process: int, port: int, models: Path, out: Path, names: list[str]) -> None:
    from stages.learn.megatron import load

    load()
    import torch

    torch.set_num_threads(1)
    from stages.learn.rendezvous import join_store

    two = 0
    for name in names or list(CASES):
        case = CASES[name]
        if case.ranks == 2:
            two += 1
            if process // 2 != two % 2:
                continue
        store = torch.distributed.PrefixStore(name, join_store("127.0.0.1", port, WORLD))
        rank, started = process % case.ranks, time.perf_counter()
        faulthandler.dump_traceback_later(300, exit=True)  # a collective that not all ranks reached
        try:
            result = run(case, rank, store, models, out / name)
        except Exception:  # of this case only; its other ranks see their peer leave
            result = {"error": traceback.format_exc()}
        result["seconds"] = time.perf_counter() - started
        (out / f"{name}.{rank}.json").write_text(json.dumps(result))


def run(case: Case, rank: int, store: Any, models: Path, folder: Path) -> dict[str, Any]:
    from stages.learn.megatron.learner import MegatronRank
    from tests.integration.learn import learner_cases as cases

    flags = {**OPTIMIZER, **case.flags}
    from configs.schema import OptimConfig

    settings = cases.settings(
        models / case.model,
        ranks=case.ranks,
        megatron=flags,
        optim=OptimConfig(**case.optim),
        **OBJECTIVES[case.objective],
    )
    learner = MegatronRank(settings, rank=rank, world_size=case.ranks, store=store)
    try:
        result = train(learner, case.micro_batches)
        result["checksum"] = sum(float(w.double().square().sum()) for _, w in learner.hf_weights())
        learner.export_hf(folder)
        return result
    finally:
        learner.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
