"""Flags of the loss, the reference model and the off-policy correction that contradict each
other."""

from __future__ import annotations

from collections.abc import Iterator

from configs.corrections import PRESETS, correction_of
from configs.schema import AlgorithmConfig, Config


def algorithm(config: Config) -> Iterator[str]:
    a = config.algorithm
    yield from _losses(a)
    yield from _reference(a)
    yield from _truncation(a)
    yield from _corrections(a)
    yield from _on_policy(a, config.async_.async_buffer_size)
    yield from _routing(config)


def _losses(a: AlgorithmConfig) -> Iterator[str]:
    if a.loss_type == "custom_loss" and not a.custom_loss_function_path:
        yield (
            "--loss-type custom_loss without --custom-loss-function-path: name the function,"
            " file.py:name"
        )
    if a.custom_loss_function_path and a.loss_type != "custom_loss":
        yield (
            f"--custom-loss-function-path {a.custom_loss_function_path} with --loss-type"
            f" {a.loss_type}: it would never be called. Add --loss-type custom_loss, or drop it"
        )
    if a.loss_type != "policy_loss":
        for flag, given in _policy_only(a).items():
            if given:
                yield (
                    f"{flag} with --loss-type {a.loss_type}: it is part of the policy loss only."
                    " Drop one of the two"
                )
    if a.advantage_estimator == "cispo" and a.eps_clip_c is not None:
        yield (
            f"--eps-clip-c {a.eps_clip_c:g} with --advantage-estimator cispo: its loss has no"
            " second bound. Drop --eps-clip-c"
        )


def _policy_only(a: AlgorithmConfig) -> dict[str, bool]:
    """Flag -> was it given, for flags without a meaning in the other losses."""
    flags = {
        "--use-tis": a.use_tis,
        f"--off-policy-correction {a.off_policy_correction}": a.off_policy_correction != "none",
        "--use-opsm": a.use_opsm,
        f"--proximal {a.proximal}": a.proximal != "recompute",
        "--use-rollout-logprobs": a.use_rollout_logprobs,
        "--eps-clip-c": a.eps_clip_c is not None,
        "--staleness-clip-decay": a.staleness_clip_decay > 0,
        "--kl-coef": a.kl_coef > 0,
        "--correction-veto-threshold": a.correction_veto_threshold is not None,
    }
    if a.loss_type == "custom_loss":
        flags["--entropy-coef"] = a.entropy_coef > 0
        # --use-kl-loss alone gives the function its ref_log_probs
        flags["--kl-loss-coef"] = a.kl_loss_coef > 0
    return flags


def _reference(a: AlgorithmConfig) -> Iterator[str]:
    if a.kl_loss_coef and not a.use_kl_loss:
        yield (
            f"--kl-loss-coef {a.kl_loss_coef:g} without --use-kl-loss: it would weigh nothing. Add"
            " --use-kl-loss"
        )
    if a.use_kl_loss and a.kl_loss_coef and a.kl_loss_type == "k1" and not a.use_unbiased_kl:
        yield (
            f"--use-kl-loss --kl-loss-coef {a.kl_loss_coef:g} with --kl-loss-type k1: as a loss"
            " log p - log ref has a gradient of 0 in expectation, it would add noise and hold"
            " nothing back (arXiv:2510.01555). Use --kl-loss-type low_var_kl (or k2, whose gradient"
            " is the KL's), or add --use-unbiased-kl"
        )
    if a.use_unbiased_kl and not a.use_kl_loss:
        yield (
            "--use-unbiased-kl without --use-kl-loss: it changes that term only. Add --use-kl-loss,"
            " or drop it"
        )
    if a.kl_coef and a.kl_loss_coef:
        yield (
            f"--kl-coef {a.kl_coef:g} with --kl-loss-coef {a.kl_loss_coef:g}: the KL would count in"
            " the advantages and in the loss. Set one of them to 0"
        )
    if a.ref_update_interval and not a.needs_reference:
        yield (
            f"--ref-update-interval {a.ref_update_interval}: nothing uses a reference model. Add"
            " --use-kl-loss or --kl-coef, or drop it"
        )


def _truncation(a: AlgorithmConfig) -> Iterator[str]:
    """--use-tis and its flags."""
    if a.use_rollout_logprobs and a.use_tis:
        yield (
            "--use-rollout-logprobs with --use-tis: the ratio against the rollout log-probs already"
            " is the off-policy correction, truncated importance sampling would apply it twice."
            " Drop one of the two"
        )
    if a.tis_clip_low > a.tis_clip:
        yield (
            f"--tis-clip-low {a.tis_clip_low:g} is above --tis-clip {a.tis_clip:g}: expected low <="
            " high, e.g. 0 and 2"
        )
    if not a.use_tis:
        given = {"--tis-level": a.tis_level != "token", "--tis-mode": a.tis_mode != "clip"}
        given[f"--custom-tis-function-path {a.custom_tis_function_path}"] = (
            a.custom_tis_function_path is not None and not a.get_mismatch_metrics
        )
        for flag in (f for f, is_given in given.items() if is_given):
            yield f"{flag} without --use-tis: it would change nothing. Add --use-tis, or drop it"
    elif a.off_policy_correction != "none":
        yield (
            f"--use-tis with --off-policy-correction {a.off_policy_correction}: both say how to"
            " correct. Drop one of the two (--use-tis is --off-policy-correction tis with bounds"
            " of its own)"
        )
    yield from _custom_tis(a)


def _custom_tis(a: AlgorithmConfig) -> Iterator[str]:
    if a.get_mismatch_metrics and not a.custom_tis_function_path:
        yield (
            "--get-mismatch-metrics without --custom-tis-function-path: it asks that function for"
            " its metrics. Name one, or drop it: the run's own (kl_rollout_old, ess_fraction,"
            " rollout_ratio_p99, ...) are in every train record"
        )
    if not a.custom_tis_function_path:
        return
    others = {
        "--correction-batch-normalize": a.correction_batch_normalize,
        "--correction-veto-threshold": a.correction_veto_threshold is not None,
        f"--off-policy-correction {a.off_policy_correction}": a.off_policy_correction != "none",
    }
    for flag in (f for f, given in others.items() if given):
        yield (
            f"--custom-tis-function-path {a.custom_tis_function_path} with {flag}: the function"
            " decides alone. Drop one of the two"
        )


def _mean_over(a: AlgorithmConfig) -> Iterator[str]:
    if a.correction_mean_over is None:
        return
    said = f"--correction-mean-over {a.correction_mean_over}"
    if not (a.custom_tis_function_path or correction_of(a).drops):
        yield (
            f"{said}: nothing drops a token. Add e.g. --off-policy-correction mis, or leave it out"
        )
    elif a.correction_mean_over == "kept" and a.calculate_per_token_loss:
        yield (
            f"{said} with --calculate-per-token-loss: that mean is over all trained tokens of the"
            " step. Drop one of the two"
        )
    elif a.correction_mean_over == "kept" and a.advantage_estimator == "dr_grpo":
        yield (
            f"{said} with --advantage-estimator dr_grpo: token sums are divided by a constant. Drop"
            " one of the two"
        )


def _corrections(a: AlgorithmConfig) -> Iterator[str]:
    name, correction = a.off_policy_correction, correction_of(a)
    yield from _mean_over(a)
    if PRESETS[name].correction.weighted and a.use_rollout_logprobs:
        yield (
            f"--use-rollout-logprobs with --off-policy-correction {name}: PPO's ratio against the"
            " rollout log-probs already holds the weight, it would count twice. Drop one of the"
            " two, or take a correction that only masks (geo-rs, opsm, m2po, dppo)"
        )
    if a.correction_batch_normalize and not correction.weighted:
        yield (
            "--correction-batch-normalize without importance weights: add --use-tis or e.g."
            " --off-policy-correction seq-tis"
        )
    if a.proximal != "recompute" and correction.ratio == "bypass":
        flag = (
            "--use-rollout-logprobs"
            if a.use_rollout_logprobs
            else f"--off-policy-correction {name}"
        )
        yield (
            f"--proximal {a.proximal} with {flag}: the ratio is against the rollout log-probs,"
            " there is no policy in between. Drop one of the two"
        )
    yield from _opsm(a)
    yield from _bounds(a)
    if not correction.ppo_clip:
        if a.advantage_estimator in ("gspo", "cispo"):
            yield (
                f"--off-policy-correction {name} with --advantage-estimator"
                f" {a.advantage_estimator}: both take the place of PPO's clip. Use"
                " --advantage-estimator grpo"
            )
        if a.staleness_clip_decay:
            yield (
                f"--staleness-clip-decay {a.staleness_clip_decay:g} with --off-policy-correction"
                f" {name}: it has no clip. Drop one of them"
            )


def _opsm(a: AlgorithmConfig) -> Iterator[str]:
    if a.opsm_delta != AlgorithmConfig().opsm_delta and not a.use_opsm:
        yield f"--opsm-delta {a.opsm_delta:g} without --use-opsm: it bounds nothing. Add --use-opsm"
    if a.use_opsm and a.off_policy_correction == "opsm":
        yield (
            "--use-opsm with --off-policy-correction opsm: both drop samples of negative advantage,"
            " by PPO's old log-probs and by the engine's. Drop one of the two"
        )


def _bounds(a: AlgorithmConfig) -> Iterator[str]:
    name, low, high = a.off_policy_correction, a.correction_low, a.correction_high
    given = [
        f"{flag} {v:g}"
        for flag, v in (("--correction-low", low), ("--correction-high", high))
        if v is not None
    ]
    if not given:
        return
    if name == "none":
        yield (
            f"{given[0]} without --off-policy-correction: name one (with --use-tis the bounds are"
            " --tis-clip-low and --tis-clip)"
        )
        return
    said = f"{' '.join(given)} with --off-policy-correction {name}"
    now = correction_of(a)
    if name == "m2po" and low is not None:
        yield (
            f"{said}: it has one bound, the threshold on the mean squared log-ratio. Use"
            " --correction-high, e.g. 0.04"
        )
    elif name == "opsm" and (high is not None or not 0 < now.low <= 1):
        yield (
            f"{said}: it has a lower bound only, a ratio of at most 1 (exp(-delta)). Use e.g."
            " --correction-low 0.95"
        )
    elif name == "dppo" and not (0 < now.low <= 1 and 0 < now.high <= 1):
        yield (
            f"{said}: its bounds are changes of a probability, above 0 and at most 1, e.g. 0.2"
            " and 0.2"
        )
    elif name not in ("m2po", "opsm", "dppo") and not now.low <= 1 <= now.high:
        yield (
            f"{said}: on-policy tokens have ratio 1, which is outside [{now.low:g}, {now.high:g}]."
            " Use low <= 1 <= high"
        )


def _on_policy(a: AlgorithmConfig, async_buffer_size: int) -> Iterator[str]:
    if not a.true_on_policy_mode:
        return
    if async_buffer_size > 0:
        yield (
            f"--true-on-policy-mode with --async-buffer-size {async_buffer_size}: rollouts"
            " generated ahead are of older weights. Set --async-buffer-size 0, or drop the mode"
        )
    if correction_of(a).active or a.staleness_clip_decay or a.ess_lr_scaling:
        yield (
            "--true-on-policy-mode with an off-policy correction (--use-tis,"
            " --off-policy-correction, --staleness-clip-decay, --ess-lr-scaling, ...): it refuses"
            " every token that could need one. Drop one of the two"
        )


def _routing(config: Config) -> Iterator[str]:
    """Replay of routed experts.

    Whether the model has experts is known where its folder is: at build.
    """
    a = config.algorithm
    if not (a.use_rollout_routing_replay or a.use_routing_replay):
        return
    flag = (
        "--use-rollout-routing-replay" if a.use_rollout_routing_replay else "--use-routing-replay"
    )
    if config.megatron.get("moe_router_fusion"):
        yield (
            f"{flag} with --moe-router-fusion: the fused router takes no experts from outside. Drop"
            " one of the two"
        )
    # as in stages/learn/step_objective.py
    decoupled = correction_of(a).ratio == "decoupled" and a.proximal == "recompute"
    has_old_pass = decoupled or a.kl_coef > 0 or a.true_on_policy_mode
    if not (a.use_rollout_routing_replay or has_old_pass):
        yield (
            f"{flag} replays the experts of the pass for the old log-probs, which"
            " --use-rollout-logprobs (or a correction with the rollout policy in its ratio) leaves"
            " out: replay the engine's, --use-rollout-routing-replay, or drop one of the two"
        )
