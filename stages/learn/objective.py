"""From the log-probs of a micro-batch to its share of the loss and of the metrics.

Pure: torch and the flags, no Megatron.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.correction import Correction
from configs.corrections import correction_of
from configs.schema import AlgorithmConfig
from stages.learn.corrections import BatchStatistics, compute_correction
from stages.learn.critic import compute_gae
from stages.learn.losses import (
    TokenLogProbs,
    apply_kl_to_advantages,
    compute_approx_kl,
    compute_opsm_mask,
    compute_sft_loss,
    reverse_kl_to_teacher,
    token_weights,
)
from stages.learn.outcome import MAXIMA, ObjectiveExtras, Outcome, TrainedTokens, diagnose
from stages.learn.surrogate import clip_range, moment_clip, surrogate_loss


def policy_objective(
    now: TokenLogProbs,
    old: Tensor | None,
    batch: TrainedTokens,
    config: AlgorithmConfig,
    denominator: float,
    extras: ObjectiveExtras = ObjectiveExtras(),  # noqa: B008  # immutable
) -> Outcome:
    """One micro-batch's share of the loss, with its sums and maxima.

    Loss: sum over trained tokens of (weight * (policy loss + kl_loss_coef * KL) - entropy_coef *
    entropy + kl_tau * (log new - log rollout)^2) * token weight / denominator, where the
    denominator counts trajectories, or tokens with calculate_per_token_loss, over all ranks of the
    optimizer step. The mask of a correction that only masks takes tokens out of the policy loss
    alone. A sample's tokens are multiplied by its weight. `old` None: no update lies between the
    old policy and this one, so old = now, exactly. In the bypass PPO's ratio is against the rollout
    policy itself, and kl_rollout_old and the weights compare it with `now`."""
    correction = correction_of(config)
    consumed = now.log_probs.detach() if old is None else old
    bypass = correction.ratio == "bypass"
    proximal = proximal_log_probs(now.log_probs, old, batch, config)
    anchor = batch.rollout_log_probs if bypass else proximal
    numerator = now.log_probs.detach() if bypass else proximal
    advantages = shaped_advantages(batch, consumed, extras.ref, config, extras.opd_kl_coef)
    statistics = extras.statistics or BatchStatistics()
    clip = moment_clip(statistics.cut) if correction.clip_budget else clip_range(batch, config)
    surrogate = surrogate_loss(now.log_probs, anchor, advantages, batch, config, correction, clip)
    if config.use_opsm:
        stays = compute_opsm_mask(
            now.log_probs, anchor, advantages, batch.token_counts, delta=config.opsm_delta
        )
        surrogate = surrogate._replace(loss=surrogate.loss * stays)
    corrected = compute_correction(
        correction, numerator, batch.rollout_log_probs, advantages, batch.token_counts, statistics
    )
    policy = surrogate.loss * corrected.weights  # 0 where dropped
    extra: dict[str, Tensor] = {}
    # under the rollout's tokens a KL without the weight would be of another policy
    kl_weights = corrected.weights if correction.weighted and not extras.tis_function else None
    if extras.tis_function is not None:
        policy, mask, extra = _custom_tis(surrogate.loss, consumed, batch, config, extras)
        corrected = corrected._replace(weights=mask.to(policy.dtype), mask=mask)
    if config.use_opsm:
        corrected = corrected._replace(mask=corrected.mask & stays)
    total = _reduced(policy, corrected.mask, batch, config, correction, extras)
    side, kl_ref = _side_terms(now, anchor, batch, config, extras, kl_weights)
    if correction.kl_tau:
        apart = (now.log_probs - batch.rollout_log_probs).square()
        total = total + correction.kl_tau * (apart * loss_weights(batch, config)).sum()
    loss = (total if side is None else total + side) / denominator
    with torch.no_grad():
        sums, maxima = diagnose(
            loss, now, consumed, anchor, surrogate, corrected, kl_ref, batch, config, correction
        )
    return Outcome(loss, sums, maxima, extra)


def proximal_log_probs(
    new: Tensor, old: Tensor | None, batch: TrainedTokens, config: AlgorithmConfig
) -> Tensor:
    """[N] log-probs, without gradient, of the policy that PPO's ratio is against and weights are
    of.

    recompute: those at consumption (`old` None: they are the new ones). loglinear: rollout / d +
    (1 - 1/d) new for a token of staleness d, new where d is 0: with every version that lies between
    them the proximal policy moves from the rollout's towards the new one, by one part in d. Source:
    A-3PO, arXiv:2512.06547; AReaL's prox_logp_method loglinear, whose proximal policy is one
    version behind the new one: the same number (there the rollout's where d is 0)."""
    if config.proximal == "recompute":
        return new.detach() if old is None else old
    assert batch.token_staleness is not None
    d = batch.token_staleness.to(new.dtype)
    share = (d > 0) / d.clamp(min=1)
    return new.detach() + share * (batch.rollout_log_probs - new.detach())


def _reduced(
    policy: Tensor,
    mask: Tensor,
    batch: TrainedTokens,
    config: AlgorithmConfig,
    correction: Correction,
    extras: ObjectiveExtras,
) -> Tensor:
    """The policy loss [N] added up: dropped tokens (mask [N] False) count nothing, and with
    mean_over "kept" the mean of a sample is over its others.

    slime's mean is over all trained tokens whatever is dropped (rollout_mask_sums): over the kept
    alone those of a sample that lost many would weigh the more."""
    if extras.reducer is not None:
        counts = batch.token_counts.tolist()
        reduce = extras.reducer(
            batch.sample_lengths.tolist(),
            counts,
            list(mask.to(policy.dtype).split(counts)),
            config.calculate_per_token_loss,
        )
        return torch.as_tensor(reduce(policy * mask))
    # Dr. GRPO's sum over a sample is divided by a constant, however many of its tokens are kept.
    over_kept = correction.mean_over == "kept" and config.advantage_estimator != "dr_grpo"
    return (policy * mask * loss_weights(batch, config, mask if over_kept else None)).sum()


def loss_weights(
    batch: TrainedTokens, config: AlgorithmConfig, mask: Tensor | None = None
) -> Tensor:
    """[N] weight of every trained token in the loss sum: its place in the mean, times its sample's
    weight."""
    per_token = config.calculate_per_token_loss
    share = batch.weights_of_samples(per_token=per_token)
    return token_weights(batch.token_counts, per_token=per_token, mask=mask, sample_weights=share)


def shaped_advantages(
    batch: TrainedTokens,
    proximal: Tensor,
    ref: Tensor | None,
    config: AlgorithmConfig,
    opd_kl_coef: float = 0.0,
) -> Tensor:
    """[N] advantages, less the KL to the reference with --kl-coef (unless that is in the rewards
    or returns already), and less opd_kl_coef times the reverse KL to a teacher."""
    advantages = batch.advantages
    if config.kl_coef and not config.pays_kl_ahead:
        assert ref is not None
        advantages = apply_kl_to_advantages(
            advantages, proximal, ref, kl_coef=config.kl_coef, kl_type=config.kl_loss_type
        )
    if opd_kl_coef:
        advantages = advantages - opd_kl_coef * reverse_kl_to_teacher(
            proximal, batch.teacher_log_probs, token_counts=batch.token_counts
        )
    return advantages


def penalised_rewards(
    batch: TrainedTokens, old: Tensor, ref: Tensor, config: AlgorithmConfig
) -> Tensor:
    """[N] ppo's token rewards (in the place of advantages, before the critic) less kl_coef * KL(old
    || reference) of every token.

    So a token pays, through GAE, for all that follow it. Source: InstructGPT, Ouyang et al. 2022,
    arXiv:2203.02155, section 3.5 and appendix C; slime's get_advantages_and_returns."""
    return apply_kl_to_advantages(
        batch.advantages, old, ref, kl_coef=config.kl_coef, kl_type=config.kl_loss_type
    )


def penalised_returns(
    batch: TrainedTokens, old: Tensor, ref: Tensor, config: AlgorithmConfig
) -> Tensor:
    """[N] returns G_t of reinforce_plus_plus (in the place of advantages, not whitened) less
    kl_coef * sum_{i >= t} gamma^(i - t) KL_i, KL_i = KL(old || reference) of trained token i of the
    sample.

    A token pays for all that follow it, as the reward is all of theirs. Source: REINFORCE++, Hu et
    al. 2025, arXiv:2501.03262 (A_t = r - beta sum_{i >= t} KL(i), then normalised); slime's
    get_reinforce_plus_plus_returns. reinforce_plus_plus_baseline: less kl_coef * KL_t of the token
    alone, as in slime's get_reinforce_plus_plus_baseline_advantages."""
    if config.advantage_estimator != "reinforce_plus_plus":
        return penalised_rewards(batch, old, ref, config)
    kl = compute_approx_kl(old, ref, config.kl_loss_type)
    # without values the advantages of GAE at lambda 1 are discounted sums
    owed = compute_gae(kl, torch.zeros_like(kl), batch.token_counts, gamma=config.gamma).advantages
    return batch.advantages - config.kl_coef * owed


def _side_terms(
    now: TokenLogProbs,
    anchor: Tensor,
    batch: TrainedTokens,
    config: AlgorithmConfig,
    extras: ObjectiveExtras,
    kl_weights: Tensor | None,
) -> tuple[Tensor | None, Tensor | None]:
    """(KL loss less entropy bonus, summed; None without either), (the KL to the reference [N], not
    weighted; None without one). `kl_weights` [N] multiply the KL in the loss (None: 1)."""
    assert now.entropy is not None
    terms, kl_ref = [], None
    if config.entropy_coef:
        terms.append(-config.entropy_coef * now.entropy)
    if extras.ref is not None:
        importance = (now.log_probs - anchor).exp() if config.use_unbiased_kl else None
        kl_ref = compute_approx_kl(now.log_probs, extras.ref, config.kl_loss_type, importance)
        if config.use_kl_loss:
            weighted = kl_ref if kl_weights is None else kl_weights * kl_ref
            terms.append(config.kl_loss_coef * weighted)
    weights = loss_weights(batch, config)
    return (torch.stack(terms).sum(0) * weights).sum() if terms else None, kl_ref


def _custom_tis(
    policy: Tensor,
    proximal: Tensor,
    batch: TrainedTokens,
    config: AlgorithmConfig,
    extras: ObjectiveExtras,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """slime's --custom-tis-function-path: (policy loss [N], mask [N], metrics).

    Its lists hold trained tokens only, a sample each.
    """
    assert extras.tis_function is not None
    counts = batch.token_counts.tolist()
    policy, masks, metrics = extras.tis_function(
        extras.args,
        pg_loss=policy,
        train_log_probs=list(proximal.split(counts)),
        rollout_log_probs=list(batch.rollout_log_probs.split(counts)),
        loss_masks=[torch.ones_like(part) for part in proximal.split(counts)],
        total_lengths=batch.sample_lengths.tolist(),
        response_lengths=counts,
    )
    weights = loss_weights(batch, config)
    return (
        policy,
        torch.cat(list(masks)) > 0,
        {k: (v.detach().float() * weights).sum() for k, v in metrics.items()},
    )


def sft_objective(now: TokenLogProbs, denominator: float) -> Outcome:
    """The mean cross entropy over all trained tokens of the step: its share of the loss, SFT_SUMS,
    and zeros as maxima."""
    loss = compute_sft_loss(now.log_probs).sum() / denominator
    detached = now.log_probs.detach()
    sums = torch.stack(
        [loss.detach(), detached.new_tensor(float(len(detached))), detached.exp().sum()]
    )
    return Outcome(loss, sums, detached.new_zeros(len(MAXIMA)))
