"""Flags of the off-policy correction that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from configs.correction import Correction
from configs.corrections import PRESETS, correction_of
from configs.schema import AlgorithmConfig

_OWN_LOSS = ("gspo", "cispo", "sapo", "vespo")  # estimators whose loss is not PPO's clip on tokens


def corrections(a: AlgorithmConfig) -> Iterator[str]:
    yield from _truncation(a)
    yield from _custom_tis(a)
    yield from _mean_over(a)
    yield from _twice(a)
    if a.correction_batch_normalize and not correction_of(a).weighted:
        yield (
            "--correction-batch-normalize without importance weights: add --use-tis or e.g."
            " --off-policy-correction seq-tis"
        )
    yield from _proximal(a)
    yield from _opsm(a)
    yield from _bounds(a)
    yield from _clip(a)


def _truncation(a: AlgorithmConfig) -> Iterator[str]:
    """--use-tis and its flags."""
    name = a.off_policy_correction
    preset = PRESETS[name].correction
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
    elif preset.weighted:
        yield (
            f"--use-tis with --off-policy-correction {name}: both weigh the loss. Drop one of the"
            " two, or take a correction that only drops (geo-rs, k3-rs), or --correction-reject"
        )
    elif preset.ratio == "bypass":
        yield (
            f"--use-tis with --off-policy-correction {name}: there PPO's ratio is against the"
            " rollout policy, which already is the weight, it would count twice. Drop one of the"
            " two, or take a correction that leaves the ratio alone (geo-rs, k3-rs)"
        )


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
        "--correction-reject": bool(a.correction_reject),
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
    if not (a.custom_tis_function_path or a.use_opsm or correction_of(a).drops):
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


def _twice(a: AlgorithmConfig) -> Iterator[str]:
    """A weight old/rollout or new/rollout beside a ratio that is new/rollout already."""
    name = a.off_policy_correction
    weighs = f"--off-policy-correction {name}"
    if a.use_tis:
        weighs = "--use-tis"
    elif not PRESETS[name].correction.weighted or name == "icepop":
        return
    if a.use_rollout_logprobs:
        yield (
            f"--use-rollout-logprobs with {weighs}: PPO's ratio against the rollout log-probs"
            " already holds the weight, it would count twice. Drop one of the two, or take a"
            " correction that only drops (geo-rs, k3-rs, icepop, two-sided, opsm, m2po, dppo)"
        )
    elif a.advantage_estimator == "vespo":
        yield (
            f"--advantage-estimator vespo with {weighs}: vespo's own weight is of new/rollout, it"
            " would count twice. Drop one of the two"
        )


def _proximal(a: AlgorithmConfig) -> Iterator[str]:
    if a.proximal == "recompute" or correction_of(a).ratio != "bypass":
        return
    flag = f"--off-policy-correction {a.off_policy_correction}"
    if a.use_rollout_logprobs:
        flag = "--use-rollout-logprobs"
    elif a.advantage_estimator == "vespo":
        flag = "--advantage-estimator vespo"
    yield (
        f"--proximal {a.proximal} with {flag}: the ratio is against the rollout log-probs, there is"
        " no policy in between. Drop one of the two"
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
    preset = PRESETS[name].correction
    measure = preset.rejections[0].measure if preset.rejections else "k1"
    floor, top = _now(preset, a)
    if (preset.looks_at_moments or measure == "k3") and low is not None:
        yield (
            f"{said}: it has one bound, the threshold on"
            f" {'the mean squared log-ratio' if preset.looks_at_moments else 'a mean k3'}. Use"
            " --correction-high, e.g."
            f" {0.04 if preset.looks_at_moments else 0.01}"
        )
    elif name == "opsm" and (high is not None or not 0 < floor <= 1):
        yield (
            f"{said}: it has a lower bound only, a ratio of at most 1 (exp(-delta)). Use e.g."
            " --correction-low 0.95"
        )
    elif measure == "probability" and not (0 < floor <= 1 and 0 < top <= 1):
        yield (
            f"{said}: its bounds are changes of a probability, above 0 and at most 1, e.g. 0.2"
            " and 0.2"
        )
    elif measure == "k1" and not preset.looks_at_moments and not floor <= 1 <= top:
        yield (
            f"{said}: on-policy tokens have ratio 1, which is outside [{floor:g}, {top:g}]."
            " Use low <= 1 <= high"
        )


def _now(preset: Correction, a: AlgorithmConfig) -> tuple[float, float]:
    """The bounds that --correction-low and --correction-high are about, as they are then."""
    bounded = preset.rejections[0] if preset.rejections else preset.weight
    own = (bounded.low, bounded.high) if bounded else (0.0, 0.0)
    given = (a.correction_low, a.correction_high)
    low, high = (was if v is None else v for was, v in zip(own, given, strict=True))
    return low, high


def _clip(a: AlgorithmConfig) -> Iterator[str]:
    """Who takes the place of PPO's clip."""
    name, correction = a.off_policy_correction, correction_of(a)
    takes_it = not correction.ppo_clip or correction.clip_budget is not None
    if takes_it and a.advantage_estimator in _OWN_LOSS:
        yield (
            f"--off-policy-correction {name} with --advantage-estimator {a.advantage_estimator}:"
            " both take the place of PPO's clip. Use --advantage-estimator grpo"
        )
    if takes_it and a.staleness_clip_decay:
        yield (
            f"--staleness-clip-decay {a.staleness_clip_decay:g} with --off-policy-correction"
            f" {name}: it has no clip. Drop one of them"
        )
    for flag, given in (
        (f"--staleness-clip-decay {a.staleness_clip_decay:g}", a.staleness_clip_decay > 0),
        (f"--eps-clip-c {a.eps_clip_c}", a.eps_clip_c is not None),
    ):
        if given and a.advantage_estimator in ("sapo", "vespo"):
            yield (
                f"{flag} with --advantage-estimator {a.advantage_estimator}: its loss has no clip."
                " Drop one of them"
            )
