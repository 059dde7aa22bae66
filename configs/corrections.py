"""Off-policy correction as one configuration, and the named presets that papers and other systems
use. Layer 0.

Three policies: rollout (behaviour: the engine sampled from it), old (proximal: the learner at
consumption), new (differentiated). stages/learn/corrections.py applies a `Correction`; on-policy
every preset below is the identity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from configs.schema import AlgorithmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """What is measured of every token, which tokens it concerns, and what happens to those outside
    [low, high]."""

    # ratio of a token; product over its sample; geometric mean of those
    level: Literal["token", "sequence", "geometric"] = "token"
    # weight to at most high; into [low, high]; drop what is outside
    action: Literal["none", "truncate", "clip", "mask"] = "none"
    low: float = 0.0
    high: float = math.inf
    # the last two: difference of probabilities; squared log-ratio
    measure: Literal["ratio", "probability", "second_moment"] = "ratio"
    # tokens of any, of negative advantage; those driven further from ratio 1
    applies_to: Literal["all", "negative", "outward"] = "all"
    weighted: bool = False  # the ratio multiplies the loss
    # tokens that a sample's mean counts: dropped ones are zeros, or are not there
    mean_over: Literal["all", "kept"] = "all"
    veto: float | None = None  # a token with a ratio below this drops its whole sample
    batch_normalize: bool = False  # weights are divided by their mean over the optimizer step
    # old/rollout, PPO's ratio is new/old; new/rollout for both
    ratio: Literal["decoupled", "bypass"] = "decoupled"
    ppo_clip: bool = True  # False: the mask takes the clip's place

    @property
    def active(self) -> bool:
        return self.weighted or self.action != "none" or self.veto is not None

    @property
    def drops(self) -> bool:
        return self.action == "mask" or self.veto is not None

    @property
    def needs_statistics(self) -> bool:
        """Must the whole optimizer step be looked at before any of its tokens (in one more forward
        pass)?"""
        return self.batch_normalize or self.measure == "second_moment"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    correction: Correction
    source: str


# Nats a token, against the engine's log-probs. The mean over n tokens of kernel noise of deviation
# s has one of s / sqrt(n), s^2 / 2 below 0: at s = 0.03 over 99% of the samples of three tokens and
# more are kept. slime's 1e-4, against recomputed log-probs (exactly 0 at first), would here drop
# about half of all negative samples.
_OPSM_DELTA = 0.05

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "none": Preset(correction=Correction(), source="the ratio old/rollout is ignored"),
        "tis": Preset(
            correction=Correction(action="truncate", high=2.0, weighted=True),
            source=(
                "Ionides 2008, Truncated Importance Sampling; for language models Yao et al. "
                "2025, fengyao.notion.site/off-policy-rl"
            ),
        ),
        "seq-tis": Preset(
            correction=Correction(level="sequence", action="truncate", high=2.0, weighted=True),
            source=(
                "Liu et al. 2025, When Speed Kills Stability (sequence-level TIS); bound as in "
                "verl's rollout correction"
            ),
        ),
        "icepop": Preset(
            correction=Correction(action="mask", low=0.5, high=5.0, weighted=True),
            source=(
                "Ling team 2025, Every Step Evolves (Ring-1T), arXiv:2510.18855: alpha 0.5, "
                "beta 5.0"
            ),
        ),
        "mis": Preset(
            correction=Correction(
                action="mask", low=0.5, high=2.0, weighted=True, mean_over="kept"
            ),
            source=(
                "Liu et al. 2025, When Speed Kills Stability (masked importance sampling, token "
                "level); bounds as in Miles"
            ),
        ),
        "seq-mis": Preset(
            correction=Correction(
                level="sequence", action="mask", low=0.5, high=2.0, weighted=True, mean_over="kept"
            ),
            source=(
                "Liu et al. 2025, When Speed Kills Stability (sequence level); both bounds are "
                "verl's (decoupled_seq_is_rs)"
            ),
        ),
        "geo-rs": Preset(
            correction=Correction(
                level="geometric", action="mask", low=0.999, high=1.001, mean_over="kept"
            ),
            source="verl's rollout correction, geometric rejection: 0.999 to 1.001, no weight",
        ),
        "opsm": Preset(
            correction=Correction(
                level="geometric",
                action="mask",
                low=math.exp(-_OPSM_DELTA),
                applies_to="negative",
                ratio="bypass",
            ),
            source=(
                "DeepSeek-AI 2025, DeepSeek-V3.2, arXiv:2512.02556, off-policy sequence "
                "masking (no bound is published; low = exp(-0.05): ours)"
            ),
        ),
        "decoupled-ppo": Preset(
            correction=Correction(action="mask", high=5.0, weighted=True),
            source=(
                "Fu et al. 2025, AReaL, arXiv:2505.24298, eq. 5 (Hilton et al. 2021, "
                "arXiv:2110.00641); AReaL's cap 5.0"
            ),
        ),
        "m2po": Preset(
            correction=Correction(
                action="mask",
                high=0.04,
                measure="second_moment",
                applies_to="outward",
                ratio="bypass",
                ppo_clip=False,
            ),
            source=(
                "Zheng et al. 2025, M2PO, arXiv:2510.01161, algorithm 1: threshold 0.04 on the "
                "mean squared log-ratio"
            ),
        ),
        "dppo": Preset(
            correction=Correction(
                action="mask",
                low=0.2,
                high=0.2,
                measure="probability",
                applies_to="outward",
                ratio="bypass",
                ppo_clip=False,
            ),
            source=(
                "Qi et al. 2026, DPPO, arXiv:2602.04879, binary total variation; prime-rl's 0.2 "
                "and 0.2"
            ),
        ),
    }
)


def correction_of(config: AlgorithmConfig) -> Correction:
    """The correction that the flags ask for: --use-tis, a preset with its overrides, or none;
    --use-rollout-logprobs is the bypass."""
    if config.use_tis:
        low, high = config.tis_clip_low, config.tis_clip
        base = Correction(
            level=config.tis_level, action=config.tis_mode, low=low, high=high, weighted=True
        )
    else:
        base = PRESETS[config.off_policy_correction].correction
        if config.correction_low is not None:
            # A truncating preset with a lower bound clips.
            base = dataclasses.replace(
                base,
                low=config.correction_low,
                action="clip" if base.action == "truncate" else base.action,
            )
        if config.correction_high is not None:
            base = dataclasses.replace(base, high=config.correction_high)
    return dataclasses.replace(
        base,
        mean_over=config.correction_mean_over or base.mean_over,
        veto=config.correction_veto_threshold,
        batch_normalize=config.correction_batch_normalize,
        ratio="bypass" if config.use_rollout_logprobs else base.ratio,
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
    if PRESETS[args.off_policy_correction].correction.active:
        return f"--off-policy-correction {args.off_policy_correction}"
    return None
