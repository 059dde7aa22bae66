"""What a mean is over where tokens are dropped, and a user's own sum: against loops in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema import AlgorithmConfig
from stages.learn.losses import compute_log_probs_from_logits
from stages.learn.objective import policy_objective
from stages.learn.outcome import ObjectiveExtras
from tests.unit.tokens import FakeSample, make_model, make_samples, pack

LENGTHS = [8, 3, 12, 1]


def loss_of(config: AlgorithmConfig, seed: int, **extras: Any) -> tuple[float, Tensor]:
    """(loss, its gradient at the table of logits), of one step."""
    table = make_model(seed).double().requires_grad_()
    batch = pack(make_samples(LENGTHS, seed, spread=0.7), torch.float64)
    now = compute_log_probs_from_logits(table[batch.contexts].float(), batch.targets)
    denominator = float(sum(LENGTHS) if config.calculate_per_token_loss else len(LENGTHS))
    out = policy_objective(now, batch.old, batch, config, denominator, ObjectiveExtras(**extras))
    return out.loss.item(), torch.autograd.grad(out.loss, table)[0]


def loop(
    seed: int,
    weight: Callable[[float], float],
    reduce: Callable[[list[Tensor], list[bool]], Tensor],
    total: float,
) -> tuple[float, Tensor]:
    """The same, a token at a time. `weight` of a log-ratio: 0 drops the token."""
    table = make_model(seed).double().requires_grad_()
    log_p = torch.log_softmax(table, -1)
    loss = torch.zeros((), dtype=torch.float64)
    for s in make_samples(LENGTHS, seed, spread=0.7):
        tokens, kept = token_losses(s, log_p, weight)
        loss = loss + reduce(tokens, kept)
    loss = loss / total
    return loss.item(), torch.autograd.grad(loss, table)[0]


def token_losses(
    s: FakeSample, log_p: Tensor, weight: Callable[[float], float]
) -> tuple[list[Tensor], list[bool]]:
    tokens, kept = [], []
    for c, t, rollout, old in zip(s.contexts, s.targets, s.rollout_log_probs, s.old, strict=True):
        ratio = (log_p[c, t] - old).exp()
        surrogate = torch.maximum(-ratio * s.advantage, -ratio.clamp(0.8, 1.2) * s.advantage)
        w = weight(old - rollout)
        tokens.append(w * surrogate)
        kept.append(w > 0)
    return tokens, kept


def tis_and_mask(args: Any, **given: Any) -> Any:
    """Drops w outside [0.5, 2], as slime's mis.py with tis_mode mask: both in loss and masks."""
    gaps = [
        o - r for o, r in zip(given["train_log_probs"], given["rollout_log_probs"], strict=True)
    ]
    masks = [((g.exp() >= 0.5) & (g.exp() <= 2.0)).double() for g in gaps]
    return given["pg_loss"] * (torch.cat(gaps).exp() * torch.cat(masks)), masks, {}


def inside(x: float) -> float:
    return math.exp(x) if 0.5 <= math.exp(x) <= 2.0 else 0.0


REDUCE: dict[str, Callable[[list[Tensor], list[bool]], Tensor]] = {
    "all": lambda tokens, kept: torch.stack(tokens).sum() / len(tokens),
    "kept": lambda tokens, kept: torch.stack(tokens).sum() / max(sum(kept), 1),
    "token": lambda tokens, kept: torch.stack(tokens).sum(),
}


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("mean_over", ["all", "kept", None])
@pytest.mark.parametrize("per_token", [False, True])
def test_what_a_mean_is_over(hook: bool, mean_over: Any, per_token: bool) -> None:
    """`mis` is over the kept unless told otherwise; a function's masks are over all, as slime's;
    the mean over tokens counts dropped ones either way."""
    flags: dict[str, Any] = {"use_tis": True} if hook else {"off_policy_correction": "mis"}
    config = AlgorithmConfig(
        **flags, correction_mean_over=mean_over, calculate_per_token_loss=per_token
    )
    says = mean_over or ("all" if hook else "kept")
    for seed in range(4):
        extras = {"tis_function": tis_and_mask} if hook else {}
        got = loss_of(config, seed, **extras)
        reduce = REDUCE["token" if per_token else says]
        want = loop(seed, inside, reduce, sum(LENGTHS) if per_token else len(LENGTHS))
        assert got[0] == pytest.approx(want[0], abs=1e-6)
        assert (got[1] - want[1]).abs().max() < 1e-6
        if not per_token:
            other = REDUCE["kept" if says == "all" else "all"]
            assert abs(loop(seed, inside, other, len(LENGTHS))[0] - want[0]) > 1e-4


def test_a_users_reducer_adds_up_the_policy_loss_and_nothing_else() -> None:
    seen: dict[str, Any] = {}

    def reducer(total: list[int], response: list[int], masks: list[Tensor], per_token: bool) -> Any:
        seen.update(total=total, response=response, per_token=per_token, masks=masks)
        return lambda loss: sum(part.sum() ** 1 for part in loss.split(response)) / 7

    config = AlgorithmConfig(off_policy_correction="icepop", correction_high=2.0, entropy_coef=0.1)
    got = loss_of(config, 5, reducer=reducer)
    entropy_only = loss_of(
        config, 5, reducer=lambda *_: lambda loss: torch.zeros((), dtype=torch.float64)
    )
    want = loop(5, inside, lambda tokens, kept: torch.stack(tokens).sum() / 7, len(LENGTHS))
    assert got[0] - entropy_only[0] == pytest.approx(want[0], abs=1e-6)
    assert (got[1] - entropy_only[1] - want[1]).abs().max() < 1e-6
    assert entropy_only[1].abs().max() > 1e-4
    assert (seen["response"], seen["per_token"]) == (LENGTHS, False)
    assert seen["total"] == [n + 3 for n in LENGTHS]
    batch = pack(make_samples(LENGTHS, 5, spread=0.7), torch.float64)
    kept = [float(inside(x) > 0) for x in (batch.old - batch.rollout_log_probs).tolist()]
    assert torch.cat(seen["masks"]).tolist() == kept and 0 < sum(kept) < len(kept)
