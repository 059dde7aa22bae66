"""The FSDP backend against the Megatron backend, two ranks against one, checkpoints between them,
refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema import OptimConfig
from pipeline.core.errors import CheckpointError, LearnerError
from tests.conftest import ROOT
from tests.integration.learn import fsdp_ranks, vision_cases
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
# Every loss path, and between them every flag of the optimizer.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "tis": {
        "use_tis": True,
        "entropy_coef": 0.01,
        "megatron": {"weight_decay": 0.1, "adam_beta2": 0.9, "adam_eps": 1e-6},
    },
    "m2po-kl": {
        "off_policy_correction": "m2po",
        "use_kl_loss": True,
        "kl_loss_coef": 0.1,
        "kl_loss_type": "k3",
        "ref_update_interval": 1,
    },
    "decoupled": {
        "off_policy_correction": "decoupled-ppo",
        "calculate_per_token_loss": True,
        "kl_coef": 0.1,
    },
    "gspo": {"advantage_estimator": "gspo", "temperature": 0.7, "megatron": {"clip_grad": 0.0}},
    "cispo": {
        "advantage_estimator": "cispo",
        "ess_lr_scaling": True,
        "off_policy_correction": "seq-tis",
    },
    "opob": {"advantage_estimator": "opob", "off_policy_correction": "seq-tis"},
    "kl-returns": {
        "advantage_estimator": "reinforce_plus_plus",
        "kl_coef": 0.1,
        "normalize_advantages": True,
    },
    "loglinear": {"proximal": "loglinear", "use_tis": True, "use_opsm": True},
    "sft": {"loss_type": "sft_loss", "custom_tis_function_path": None},
}
OPTIM = OptimConfig(lr_decay_style="cosine", lr_warmup_iters=1, lr_decay_iters=6)


def settings_of(
    backend: str, model: Path, *, gradient_checkpointing: bool = False, **flags: Any
) -> Any:
    return cases.settings(
        model,
        optim=OPTIM,
        train_backend=backend,
        gradient_checkpointing=gradient_checkpointing,
        **flags,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "qwen3": cases.make_model("qwen3", root / "qwen3", tied=False),
        "tied": cases.make_model("llama", root / "tied", tied=True),
    }


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """One rank at a time: starting the next closes the last."""
    import stages.learn.fsdp
    import stages.learn.megatron

    ranks: list[Any] = []

    def make(backend: str, model: Path, **flags: Any) -> Any:
        for old in ranks:
            old.close()
        ranks.clear()
        package = {"fsdp": stages.learn.fsdp, "megatron": stages.learn.megatron}[backend]
        ranks.append(package.start_rank(settings_of(backend, model, **flags)))
        return ranks[0]

    yield make
    for rank in ranks:
        rank.close()


def two_rollouts(rank: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    steps = [cases.make_step(part, micro_batches=2) for part in cases.halves()]
    metrics = [cases.step(rank, cases.make_batch(*steps, rollout_id=i)) for i in range(2)]
    return metrics, cases.weights_of(rank)


def close_to(a: dict[str, float], b: dict[str, float]) -> None:
    assert a.keys() == b.keys()
    for name in a.keys() - cases.MEASURED:
        assert a[name] == pytest.approx(b[name], rel=2e-5, abs=1e-5), name


@pytest.mark.parametrize("name", ALGORITHMS)
def test_same_numbers_as_megatron(
    folders: dict[str, Path], start: Callable[..., Any], name: str
) -> None:
    model = folders["tied" if name == "gspo" else "qwen3"]
    want, want_weights = two_rollouts(start("megatron", model, **ALGORITHMS[name]))
    got, got_weights = two_rollouts(start("fsdp", model, **ALGORITHMS[name]))
    for a, b in zip(got, want, strict=True):
        close_to(a, b)
    assert got_weights.keys() == want_weights.keys()
    for key, tensor in got_weights.items():
        torch.testing.assert_close(tensor, want_weights[key], atol=1e-5, rtol=1e-5, msg=key)


@pytest.fixture(scope="module")
def pair(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """(what one rank found, what each of two found, their folder): the same three rollouts, the
    third from the other's snapshot too."""
    from stages.learn.fsdp import start_rank
    from stages.learn.rendezvous import serve_store

    out = tmp_path_factory.mktemp("fsdp")
    single = start_rank(settings_of("fsdp", folders["qwen3"], **fsdp_ranks.ALGORITHM))
    trained, weights = two_rollouts(single)
    single.save(out / "single")
    store, port = serve_store(2)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    seeing = vision_cases.make_folder(out / "models")
    words = [str(port), str(folders["qwen3"]), str(out / "single"), str(out), str(seeing)]
    command = [sys.executable, "-m", "tests.integration.learn.fsdp_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(r), *words], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    try:
        steps = [cases.make_step(part, micro_batches=2) for part in cases.halves()]
        third = cases.step(single, cases.make_batch(*steps, rollout_id=2))
        errors = [r.communicate(timeout=300)[1] for r in ranks]
        assert [r.returncode for r in ranks] == [0, 0], "\n".join(errors)[-4000:]
        single.load(out / "pair")
        from_two = cases.step(single, cases.make_batch(*steps, rollout_id=2))
        few = cases.step(single, cases.few())
    finally:
        for r in ranks:
            r.kill()
        single.close()
        del store
    single = start_rank(settings_of("fsdp", seeing, use_tis=True))
    seen = [
        cases.step(single, cases.make_batch(fsdp_ranks.vision_step(seeing, 1))) for _ in range(3)
    ]
    single.close()
    found = {
        "trained": trained,
        "weights": weights,
        "third": third,
        "from_two": from_two,
        "few": few,
        "vision": seen,
    }
    return found, [json.loads((out / f"{r}.json").read_text()) for r in range(2)], out


def test_two_ranks_train_as_one(pair: Any) -> None:
    from safetensors.torch import load_file

    single, two, out = pair
    for found in two:
        for a, b in zip(found["trained"], single["trained"], strict=True):
            close_to(a, b)
        assert "refused" in found["refused"] and "cut for 1 data-parallel ranks" in found["miscut"]
    exported = load_file(out / "pair" / "hf" / "model.safetensors")
    assert exported.keys() == single["weights"].keys()
    for key, tensor in exported.items():
        torch.testing.assert_close(tensor, single["weights"][key], atol=1e-5, rtol=1e-5, msg=key)
    # in a push the first rank sends all, and says so before
    (described, sent), (nothing, none) = (found["sent"] for found in two)
    assert described == sent and {name for name, _, _ in sent} == exported.keys()
    assert nothing == none == []


def test_checkpoints_resume_exactly_and_fit_any_number_of_ranks(pair: Any) -> None:
    single, two, _ = pair
    for found in two:
        after, resumed = (
            {k: v for k, v in found[x].items() if k not in cases.MEASURED}
            for x in ("after", "resumed")
        )
        assert after == resumed and after["loss"] != found["trained"][-1]["loss"]
        close_to(found["from_one"], single["third"])
    close_to(single["from_two"], single["third"])


def test_a_rank_without_a_sample_takes_part(pair: Any) -> None:
    single, two, _ = pair
    for found in two:
        assert found["few"].keys() == single["few"].keys()
        for name in found["few"].keys() - cases.MEASURED - {"num_tokens"}:
            assert found["few"][name] == pytest.approx(single["few"][name], rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("backend", ["megatron", "fsdp"])
def test_a_step_without_a_sample_changes_nothing(
    folders: dict[str, Path], start: Callable[..., Any], backend: str
) -> None:
    """But the place in the schedule: moments and weight decay move no weight either."""
    rank = start(backend, folders["tied"], use_tis=True, megatron={"weight_decay": 0.1})
    two_rollouts(rank)
    before = cases.weights_of(rank)
    few = cases.few()
    got = cases.step(rank, dataclasses.replace(few, steps=(few.steps[1],) * 2))
    assert (got["loss"], got["grad_norm"], got["num_loss_tokens"]) == (0.0, 0.0, 0.0)
    after = cases.weights_of(rank)
    assert all(torch.equal(after[name], before[name]) for name in before)
    steps = [cases.make_step(part, micro_batches=2) for part in cases.halves()]
    assert (
        cases.step(rank, cases.make_batch(*steps, rollout_id=4))["lr"] < 1e-3 * 0.2
    )  # cosine's end


def test_ranks_without_an_image_look_along(pair: Any) -> None:
    """They would else wait for one another in the vision tower's collectives."""
    single, two, _ = pair
    # the first is at learning rate 0
    assert single["vision"][1]["grad_norm"] != single["vision"][2]["grad_norm"]
    for found in two:
        for a, b in zip(found["vision"], single["vision"], strict=True):
            close_to(a, b)


def test_gradient_checkpointing_changes_no_bit(
    folders: dict[str, Path], start: Callable[..., Any]
) -> None:
    plain, weights = two_rollouts(start("fsdp", folders["qwen3"], use_tis=True))
    saving, again = two_rollouts(
        start("fsdp", folders["qwen3"], use_tis=True, gradient_checkpointing=True)
    )
    assert [{k: v for k, v in m.items() if k not in cases.MEASURED} for m in saving] == [
        {k: v for k, v in m.items() if k not in cases.MEASURED} for m in plain
    ]
    assert all(torch.equal(again[key], weights[key]) for key in weights)


def test_supervised_steps_leave_only_their_weights(
    folders: dict[str, Path], start: Callable[..., Any]
) -> None:
    step = cases.make_step(cases.make_samples(cases.LENGTHS), micro_batches=2)
    found = {}
    for backend in ("megatron", "fsdp"):
        rank = start(backend, folders["qwen3"])
        found[backend] = [rank.sft_step(cases.share(step), 1e-3) for _ in range(3)]
        rank.reset_optimizer()
        found[backend].append(cases.step(rank, cases.make_batch(step)))
    for a, b in zip(found["fsdp"], found["megatron"], strict=True):
        close_to(a, b)
    # warm-up starts anew
    assert found["fsdp"][2]["loss"] < found["fsdp"][0]["loss"] and found["fsdp"][3]["lr"] == 0.0


def test_bfloat16_computes_with_it_and_keeps_float32(
    folders: dict[str, Path], start: Callable[..., Any]
) -> None:
    rank = start("fsdp", folders["qwen3"], dtype="bfloat16", use_tis=True)
    metrics, weights = two_rollouts(rank)
    want, _ = two_rollouts(start("fsdp", folders["qwen3"], use_tis=True))
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}  # what engines and exports get
    assert rank.describe_sent() == [cases.meta(n, t) for n, t in rank.sent_weights()]
    assert {p.dtype for p in rank._model.parameters()} == {torch.float32}
    assert (
        metrics[0]["loss"] == pytest.approx(want[0]["loss"], rel=0.1)
        and metrics[0]["loss"] != want[0]["loss"]
    )


def test_a_refused_step_changes_nothing(
    folders: dict[str, Path], start: Callable[..., Any]
) -> None:
    rank = start("fsdp", folders["qwen3"])
    good = cases.make_batch(cases.make_step(cases.halves()[0]))
    cases.step(rank, good)
    before = cases.weights_of(rank)
    with pytest.raises(LearnerError, match="not finite"):
        cases.step(rank, cases.make_batch(cases.make_step(cases.poisoned())))
    assert all(torch.equal(before[key], tensor) for key, tensor in rank.hf_weights())
    assert cases.step(rank, good)["lr"] > 0


def test_folders_and_checkpoints_that_do_not_fit(
    folders: dict[str, Path], start: Callable[..., Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    rank = start("fsdp", folders["qwen3"])
    with pytest.raises(CheckpointError, match="no checkpoint of --train-backend fsdp"):
        rank.load(tmp_path)
    (tmp_path / "torch_dist").mkdir()
    with pytest.raises(CheckpointError, match="written with --train-backend megatron"):
        rank.load(tmp_path)
    rank.save(tmp_path / "saved")
    with pytest.raises(
        CheckpointError, match=r"of another model: surplus .*lm_head.*; shapes exp_avg"
    ):
        start("fsdp", folders["tied"]).load(tmp_path / "saved")
    tensors = load_file(folders["qwen3"] / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders["qwen3"] / "config.json").read_bytes())
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing model.norm.weight; not of this model model.extra"
    ):
        start("fsdp", tmp_path)


def test_experts_and_sliding_windows(tmp_path: Path, start: Callable[..., Any]) -> None:
    """Experts that transformers fuses are read and written as published; a window changes what a
    token sees, as in transformers."""
    from safetensors.torch import load_file

    model = cases.load_hf(make_mixture(tmp_path / "moe"))
    rank = start("fsdp", tmp_path / "moe", calculate_per_token_loss=True)
    stored = load_file(tmp_path / "moe" / "model.safetensors")
    ours = cases.weights_of(rank)
    assert rank.describe_sent() == [cases.meta(n, t) for n, t in rank.sent_weights()]
    assert ours.keys() == stored.keys() and all(
        torch.equal(ours[key], stored[key]) for key in stored
    )
    samples = cases.make_samples(cases.LENGTHS)
    samples = [
        dataclasses.replace(
            s, rollout_log_probs=cases.token_log_probs(model, s, 1.0).detach().numpy()
        )
        for s in samples
    ]
    metrics = cases.step(rank, cases.make_batch(cases.make_step(samples)))
    assert abs(metrics["kl_rollout_old_k1"]) < 1e-5 and metrics["rollout_ratio_p99"] == 1.0


def make_mixture(path: Path) -> Path:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    shape = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "use_sliding_window": True,
        "max_window_layers": 1,
    }
    model = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**cases._SHAPE, head_dim=16, sliding_window=7, **shape)
    )
    model.save_pretrained(path)
    return path
