"""The algorithm's options on the real learner: every preset takes a step, the reference model is
frozen, kept and resumed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.corrections import PRESETS
from pipeline.core.errors import CheckpointError, LearnerError
from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
KL = {"use_kl_loss": True, "kl_loss_coef": 0.1, "kl_loss_type": "k3"}
FUNCTIONS = """
import torch

def loss_function(args, batch, logits, sum_of_sample_mean):
    assert args.loss_type == "custom_loss" and logits.shape[:2] == (1, len(batch["targets"]))
    log_probs = torch.log_softmax(logits[0] / args.rollout_temperature, -1).gather(-1, batch["targets"][:, None])[:, 0]
    return sum_of_sample_mean(-log_probs), {"mine/ones": sum_of_sample_mean(torch.ones_like(log_probs))}

def tis_function(args, *, pg_loss, train_log_probs, rollout_log_probs, loss_masks, total_lengths, response_lengths):
    ratio = (torch.cat(train_log_probs) - torch.cat(rollout_log_probs)).exp()
    return pg_loss * ratio.clamp(args.tis_clip_low, args.tis_clip), loss_masks, {"mine/ratio": ratio}
"""  # noqa: E501


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.make_model("qwen3", tmp_path_factory.mktemp("model") / "qwen3", tied=True)


@pytest.fixture
def make_rank(folder: Path) -> Iterator[Callable[..., Any]]:
    from stages.learn.megatron import start_rank

    ranks: list[Any] = []

    def make(**flags: Any) -> Any:
        for old in ranks:
            old.close()
        ranks[:] = [start_rank(cases.settings(folder, **flags))]
        return ranks[0]

    yield make
    for rank in ranks:
        rank.close()


def batch(rollout_id: int = 0) -> Any:
    """Two optimizer steps, the first in two micro-batches; stale samples among fresh ones."""
    samples = [
        dataclasses.replace(s, staleness=s.index)
        for s in cases.make_samples(cases.LENGTHS, seed=rollout_id)
    ]
    return cases.make_batch(
        cases.make_step(samples[:4], micro_batches=2),
        cases.make_step(samples[4:]),
        rollout_id=rollout_id,
    )


def without_time(metrics: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k not in cases.MEASURED}


OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"off_policy_correction": name} for name in PRESETS},
    "normalised": {
        "off_policy_correction": "seq-tis",
        "correction_batch_normalize": True,
        "ess_lr_scaling": True,
    },
    "gspo": {"advantage_estimator": "gspo"},
    "cispo": {"advantage_estimator": "cispo", "staleness_clip_decay": 0.5},
    "dual-clip": {"eps_clip_c": 3.0, "use_tis": True, "tis_level": "geometric"},
    "kl-loss": {**KL, "use_unbiased_kl": True},
    "kl-reward": {"kl_coef": 0.1},
    "opob": {"advantage_estimator": "opob", "off_policy_correction": "seq-tis"},
    "kl-returns": {
        "advantage_estimator": "reinforce_plus_plus",
        "kl_coef": 0.1,
        "normalize_advantages": True,
    },
    "opsm-and-tis": {"use_opsm": True, "opsm_delta": 0.05, "use_tis": True},
    "sft": {"loss_type": "sft_loss"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_takes_a_step(make_rank: Callable[..., Any], name: str) -> None:
    rank = make_rank(**OPTIONS[name])
    before = cases.weights_of(rank)
    metrics = cases.step(rank, batch())
    assert all(math.isfinite(v) for v in metrics.values())
    assert {
        "ess_fraction/staleness_0",
        "rollout_ratio_p99/staleness_4-7",
        "kl_rollout_old_k1",
        "masked_fraction",
    } <= metrics.keys()
    assert "masked_fraction/staleness_8+" not in metrics
    assert 0 <= metrics["masked_fraction"] <= 1
    # seq-mis and geo-rs drop every sample of rollout log-probs as wild as these
    assert (
        any(not torch.equal(before[n], t) for n, t in rank.hf_weights())
        or metrics["masked_fraction"] == 1
    )


def test_the_learning_rate_follows_the_effective_sample_size(make_rank: Callable[..., Any]) -> None:
    one = cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS)))
    plain, scaled = cases.step(make_rank(), one), cases.step(make_rank(ess_lr_scaling=True), one)
    ess = scaled["trajectory_ess_fraction"]
    assert 1 / len(cases.LENGTHS) <= ess < 0.9
    assert scaled["lr"] == pytest.approx(plain["lr"] * math.sqrt(ess))


def test_kl_to_the_reference_begins_at_zero_and_grows(make_rank: Callable[..., Any]) -> None:
    rank = make_rank(**KL, megatron={"lr": 1e-2})
    one = cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS), micro_batches=3))
    assert cases.step(rank, one)["kl_ref"] == 0.0
    assert cases.step(rank, one)["kl_ref"] > 1e-6


def test_the_reference_is_the_policy_it_was(folder: Path, make_rank: Callable[..., Any]) -> None:
    """Against transformers: the k3 of the moved policy to the model in the folder."""
    rank = make_rank(**{**KL, "kl_loss_coef": 0.0}, megatron={"lr": 1e-2})
    samples = cases.make_samples(cases.LENGTHS)
    one = cases.make_batch(cases.make_step(samples))
    cases.step(rank, one)
    moved = cases.weights_of(rank)
    got = cases.step(rank, one)["kl_ref"]
    initial, model = cases.load_hf(folder), cases.load_hf(folder)
    model.load_state_dict(moved, strict=False)
    model.tie_weights()
    values = []
    with torch.no_grad():
        for s in samples:
            x = cases.token_log_probs(model, s, 1.0) - cases.token_log_probs(initial, s, 1.0)
            values.append((torch.exp(-x) - 1 + x)[torch.from_numpy(s.loss_mask.astype(bool))])
    assert got == pytest.approx(torch.cat(values).mean().item(), rel=1e-3)


def test_ref_load_and_the_update_interval(
    folder: Path, make_rank: Callable[..., Any], tmp_path: Path
) -> None:
    rank = make_rank(megatron={"lr": 1e-2})
    cases.step(rank, batch())
    rank.export_hf(tmp_path / "other")
    other = make_rank(
        **KL, ref_load=str(tmp_path / "other"), ref_update_interval=2, megatron={"lr": 1e-2}
    )
    one = [
        cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS)), rollout_id=i)
        for i in range(3)
    ]
    assert cases.step(other, one[0])["kl_ref"] > 1e-6  # not the policy's own weights
    assert cases.step(other, one[1])["kl_ref"] > 1e-6  # after it the reference is the policy
    assert cases.step(other, one[2])["kl_ref"] == 0.0
    with pytest.raises(CheckpointError, match="nowhere"):
        make_rank(**KL, ref_load=str(tmp_path / "nowhere"))


def test_a_checkpoint_keeps_the_reference(make_rank: Callable[..., Any], tmp_path: Path) -> None:
    flags = {**KL, "ref_update_interval": 1, "megatron": {"lr": 1e-2}}
    rank = make_rank(**flags)
    # the reference is now neither the folder's model nor what the policy will be
    cases.step(rank, batch(0))
    rank.save(tmp_path / "1")
    want = cases.step(rank, batch(1))
    resumed = make_rank(**flags)
    resumed.load(tmp_path / "1")
    assert without_time(cases.step(resumed, batch(1))) == without_time(want)
    fresh = make_rank(**KL, megatron={"lr": 1e-2})
    (tmp_path / "1" / "reference").rename(tmp_path / "away")
    fresh.load(tmp_path / "1")
    assert cases.step(fresh, batch(1))["kl_ref"] != want["kl_ref"]


def test_the_warm_up_comes_before_the_reference(make_rank: Callable[..., Any]) -> None:
    rank = make_rank(**KL)
    step = cases.make_step(cases.make_samples(cases.LENGTHS))
    rank.sft_step(cases.share(step), 1e-2)
    rank.reset_optimizer()
    assert cases.step(rank, cases.make_batch(step))["kl_ref"] == 0.0


def test_user_functions(make_rank: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    one = cases.make_batch(cases.make_step(cases.make_samples(cases.LENGTHS), micro_batches=2))
    want = cases.step(make_rank(loss_type="sft_loss", temperature=0.7), one)
    got = cases.step(
        make_rank(
            loss_type="custom_loss",
            custom_loss_function_path=f"{tmp_path}/mine.py",
            temperature=0.7,
        ),
        one,
    )
    assert got["mine/ones"] == pytest.approx(1.0)
    assert (got["loss"], got["grad_norm"]) == pytest.approx(
        (want["loss"], want["grad_norm"]), rel=1e-5
    )
    want = cases.step(make_rank(use_tis=True), one)
    got = cases.step(make_rank(use_tis=True, custom_tis_function_path=f"{tmp_path}/mine.py"), one)
    assert got["mine/ratio"] > 0
    assert (got["loss"], got["grad_norm"]) == pytest.approx(
        (want["loss"], want["grad_norm"]), rel=1e-5
    )


def test_supervised_gradients_are_of_the_trained_tokens_only(
    folder: Path, make_rank: Callable[..., Any]
) -> None:
    """Those that plain autograd has of their cross entropy; the others have none."""
    samples = cases.make_samples(cases.LENGTHS)
    rank = make_rank(loss_type="sft_loss", calculate_per_token_loss=True)
    got = cases.step(rank, cases.make_batch(cases.make_step(samples, micro_batches=2)))
    model = cases.load_hf(folder)
    masks = [torch.from_numpy(s.loss_mask.astype(bool)) for s in samples]
    assert not all(bool(mask.all()) for mask in masks)
    picked = [cases.token_log_probs(model, s, 1.0)[m] for s, m in zip(samples, masks, strict=True)]
    loss = -torch.cat(picked).mean()
    loss.backward()
    norm = torch.stack([w.grad.norm() for w in model.parameters() if w.grad is not None]).norm()
    assert (got["loss"], got["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-3)


def test_true_on_policy_mode_names_the_worst_token(
    folder: Path, make_rank: Callable[..., Any]
) -> None:
    model = cases.load_hf(folder)
    samples = []
    with torch.no_grad():
        for s in cases.make_samples(cases.LENGTHS):
            own = cases.token_log_probs(model, s, 1.0).numpy().astype(np.float32)
            samples.append(dataclasses.replace(s, rollout_log_probs=own))
    rank = make_rank(true_on_policy_mode=True)
    steps = [cases.make_step(samples[:4]), cases.make_step(samples[4:], micro_batches=2)]
    assert cases.step(rank, cases.make_batch(*steps))["ess_fraction"] == pytest.approx(
        1.0, abs=1e-6
    )
    rank = make_rank(true_on_policy_mode=True)
    before = cases.weights_of(rank)
    changed = samples[6].rollout_log_probs.copy()
    place = int(np.flatnonzero(samples[6].loss_mask)[2])
    changed[place] += 0.01
    bad = [*samples[:6], dataclasses.replace(samples[6], rollout_log_probs=changed), samples[7]]
    with pytest.raises(
        LearnerError, match=r"optimizer step 1 of 1.*trained token 2 of sample 6.*refused"
    ):
        cases.step(rank, cases.make_batch(cases.make_step(bad, micro_batches=2)))
    assert all(torch.equal(before[n], t) for n, t in rank.hf_weights())
