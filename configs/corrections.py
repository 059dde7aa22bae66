"""The named presets of off-policy correction that papers and other systems use, and the correction
that the flags ask for. On-policy every one is the identity. Layer 0."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from configs.correction import Correction, Rejection, Weight, parse_rejection
from configs.schema import AlgorithmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    correction: Correction
    source: str


# Nats a token, against the engine's log-probs. The mean over n tokens of kernel noise of deviation
# s has one of s / sqrt(n), s^2 / 2 below 0: at s = 0.03 over 99% of the samples of three tokens and
# more are kept. slime's 1e-4, against recomputed log-probs (exactly 0 at first), would here drop
# about half of all negative samples.
_OPSM_DELTA = 0.05
_SPEED_KILLS = "Liu et al. 2025, When Speed Kills Stability"
_GEO = Rejection(over="mean", low=0.999, high=1.001)
_K3 = Rejection(measure="k3", over="mean", high=0.01)
_DPPO = Rejection(measure="probability", low=0.2, high=0.2, applies_to="outward")

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "none": Preset(correction=Correction(), source="the ratio old/rollout is ignored"),
        "tis": Preset(
            correction=Correction(weight=Weight(high=2.0)),
            source=(
                "Ionides 2008, Truncated Importance Sampling; for language models Yao et al. "
                "2025, fengyao.notion.site/off-policy-rl"
            ),
        ),
        "seq-tis": Preset(
            correction=Correction(weight=Weight(level="sequence", high=2.0)),
            source=f"{_SPEED_KILLS} (sequence-level TIS); bound as in verl's rollout correction",
        ),
        "icepop": Preset(
            correction=Correction(weight=Weight(), rejections=(Rejection(low=0.5, high=5.0),)),
            source=(
                "Ling team 2025, Every Step Evolves (Ring-1T), arXiv:2510.18855: alpha 0.5, "
                "beta 5.0"
            ),
        ),
        "mis": Preset(
            correction=Correction(
                weight=Weight(), rejections=(Rejection(low=0.5, high=2.0),), mean_over="kept"
            ),
            source=(
                f"{_SPEED_KILLS} (masked importance sampling, token level); bounds as in Miles"
            ),
        ),
        "seq-mis": Preset(
            correction=Correction(
                weight=Weight(level="sequence"),
                rejections=(Rejection(over="sum", low=0.5, high=2.0),),
                mean_over="kept",
            ),
            source=f"{_SPEED_KILLS} (sequence level); both bounds are verl's (decoupled_seq_is_rs)",
        ),
        "geo-rs": Preset(
            correction=Correction(rejections=(_GEO,), mean_over="kept"),
            source="verl's rollout correction, geometric rejection: 0.999 to 1.001, no weight",
        ),
        "geo-rs-tis": Preset(
            correction=Correction(weight=Weight(high=2.0), rejections=(_GEO,), mean_over="kept"),
            source="verl's rollout correction, decoupled_geo_rs_token_tis",
        ),
        "k3-rs": Preset(
            correction=Correction(rejections=(_K3,), mean_over="kept"),
            source="verl's rollout correction, decoupled_k3_rs: a mean k3 of at most 0.01",
        ),
        "k3-rs-tis": Preset(
            correction=Correction(weight=Weight(high=2.0), rejections=(_K3,), mean_over="kept"),
            source="verl's rollout correction, decoupled_k3_rs_token_tis",
        ),
        "opsm": Preset(
            correction=Correction(
                rejections=(
                    Rejection(over="mean", low=math.exp(-_OPSM_DELTA), applies_to="negative"),
                ),
                ratio="bypass",
            ),
            source=(
                "DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556, off-policy sequence "
                "masking (no bound is published; low = exp(-0.05): ours)"
            ),
        ),
        "decoupled-ppo": Preset(
            correction=Correction(weight=Weight(), rejections=(Rejection(high=5.0),)),
            source=(
                "Fu et al. 2025, AReaL, arXiv:2505.24298, eq. 5 (Hilton et al. 2021, "
                "arXiv:2110.00641); AReaL's cap 5.0"
            ),
        ),
        "m2po": Preset(
            correction=Correction(
                rejections=(Rejection(measure="second_moment", high=0.04, applies_to="outward"),),
                ratio="bypass",
                ppo_clip=False,
            ),
            source=(
                "Zheng et al. 2025, M2PO, arXiv:2510.01161, the constraint of algorithm 1: a mask, "
                "mean squared log-ratio of the kept at most 0.04 (their code caps and clips: "
                "m2po-clip)"
            ),
        ),
        "m2po-clip": Preset(
            correction=Correction(ratio="bypass", clip_budget=0.04),
            source=(
                "Zheng et al. 2025, M2PO, arXiv:2510.01161, as in its authors' code "
                "(Infini-AI-Lab/M2PO, compute_m2po_policy_loss): budget 0.04, the clip never "
                "narrower than 0.3 and 0.5"
            ),
        ),
        "dppo": Preset(
            correction=Correction(rejections=(_DPPO,), ratio="bypass", ppo_clip=False),
            source=(
                "Qi et al. 2026, DPPO, arXiv:2602.04879, binary total variation; prime-rl's 0.2 "
                "and 0.2"
            ),
        ),
        "dppo-kl": Preset(
            correction=Correction(rejections=(_DPPO,), ratio="bypass", ppo_clip=False, kl_tau=1e-3),
            source=(
                "prime-rl's default loss: DPPO with the squared log-ratio of Kimi K2.5, "
                "arXiv:2602.02276, times 1e-3"
            ),
        ),
        "two-sided": Preset(
            correction=Correction(
                rejections=(Rejection(low=0.8, high=1.28),), ratio="bypass", ppo_clip=False
            ),
            source=(
                "GLM-5, arXiv:2602.15763, eq. 3 to 5, direct double-sided importance sampling; "
                "Kimi K2.5, arXiv:2602.02276. They give no bounds: DAPO's clip range, "
                "arXiv:2503.14476"
            ),
        ),
    }
)


def correction_of(config: AlgorithmConfig) -> Correction:
    """The correction that the flags ask for: a preset with its overrides, the weight of --use-tis,
    what --correction-reject adds; --use-rollout-logprobs is the bypass."""
    base = _with_bounds(PRESETS[config.off_policy_correction].correction, config)
    bypass = config.use_rollout_logprobs or config.advantage_estimator == "vespo"
    if config.off_policy_correction == "icepop" and bypass:
        # PPO's ratio, new/rollout, is the weight; the bounds take the clip's place
        base = dataclasses.replace(base, weight=None, ppo_clip=False)
    if config.use_tis:
        base = _with_tis(base, config)
    tau = config.correction_kl_tau
    return dataclasses.replace(
        base,
        rejections=(*base.rejections, *map(parse_rejection, config.correction_reject)),
        mean_over=config.correction_mean_over or base.mean_over,
        veto=config.correction_veto_threshold,
        batch_normalize=config.correction_batch_normalize,
        ratio="bypass" if bypass else base.ratio,
        kl_tau=base.kl_tau if tau is None else tau,
    )


def _with_bounds(base: Correction, config: AlgorithmConfig) -> Correction:
    """--correction-low and --correction-high: of what drops where the preset drops, else of its
    weight."""
    low, high = config.correction_low, config.correction_high
    if low is None and high is None:
        return base
    if base.clip_budget is not None:
        return dataclasses.replace(base, clip_budget=high)
    if base.rejections:
        (one,) = base.rejections
        return dataclasses.replace(
            base,
            rejections=(
                dataclasses.replace(
                    one,
                    low=one.low if low is None else low,
                    high=one.high if high is None else high,
                ),
            ),
        )
    if base.weight is None:
        return base
    w = base.weight
    weight = dataclasses.replace(
        w, low=w.low if low is None else low, high=w.high if high is None else high
    )
    return dataclasses.replace(base, weight=weight)


def _with_tis(base: Correction, config: AlgorithmConfig) -> Correction:
    """--use-tis's weight beside what the preset drops."""
    low, high, mode = config.tis_clip_low, config.tis_clip, config.tis_mode
    if mode != "mask":
        weight = Weight(level=config.tis_level, low=low if mode == "clip" else 0.0, high=high)
        return dataclasses.replace(base, weight=weight)
    over = {"token": "token", "sequence": "sum", "geometric": "mean"}[config.tis_level]
    drop = Rejection(over=over, low=low, high=high)  # type: ignore[arg-type]
    return dataclasses.replace(
        base, weight=Weight(level=config.tis_level), rejections=(drop, *base.rejections)
    )


_ASKING = (
    "use_tis",
    "get_mismatch_metrics",
    "use_rollout_logprobs",
    "true_on_policy_mode",
    "ess_lr_scaling",
)


def asks_for_log_probs(args: Any) -> str | None:
    """The flag that makes the engine's log-probs of trained tokens necessary; None where the loss
    can do without. `args`: all flags, by their names."""
    for flag in _ASKING:
        if getattr(args, flag):
            return f"--{flag.replace('_', '-')}"
    if args.advantage_estimator == "opob":
        return "--advantage-estimator opob"
    if args.proximal != "recompute":
        return f"--proximal {args.proximal}"
    if args.correction_veto_threshold is not None:
        return "--correction-veto-threshold"
    if args.correction_kl_tau:
        return "--correction-kl-tau"
    if args.correction_reject:
        return "--correction-reject"
    if args.advantage_estimator == "vespo":
        return "--advantage-estimator vespo"
    if PRESETS[args.off_policy_correction].correction != Correction():
        return f"--off-policy-correction {args.off_policy_correction}"
    return None
