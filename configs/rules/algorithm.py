"""Flags of the loss, the reference model and what is measured on-policy that contradict each
other."""

from __future__ import annotations

from collections.abc import Iterator

from configs.corrections import correction_of
from configs.rules.corrections import corrections
from configs.schema import AlgorithmConfig, Config


def algorithm(config: Config) -> Iterator[str]:
    a = config.algorithm
    yield from _losses(a)
    yield from _reference(a)
    yield from corrections(a)
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
        "--correction-reject": bool(a.correction_reject),
        "--correction-kl-tau": bool(a.correction_kl_tau),
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
