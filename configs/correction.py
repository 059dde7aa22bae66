"""Off-policy correction as one record: what tokens weigh, which are dropped, against which policy.
Layer 0.

Three policies: rollout (behaviour: the engine sampled from it), old (proximal: the learner at
consumption), new (differentiated). stages/learn/corrections.py applies a `Correction`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.core.errors import ConfigError

Level = Literal["token", "sequence", "geometric"]
Measure = Literal["k1", "k2", "k3", "probability", "second_moment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The loss is multiplied by the ratio, brought into [low, high]."""

    # ratio of a token; product over its sample; geometric mean of those
    level: Level = "token"
    low: float = 0.0
    high: float = math.inf

    @property
    def is_bounded(self) -> bool:
        return self.low > 0 or self.high < math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Tokens are dropped whose measure is outside [low, high].

    With x the log of the token's ratio: k1 is x, and its bounds are the ratio's, of exp(x) (verl
    bounds exp(-x)); k2 = x^2 / 2 and k3 = exp(x) - 1 - x are at least 0 and have an upper bound.
    `over` a sample's tokens they are added up, averaged, or the largest counts, and the sample is
    dropped or kept whole. Source: verl's rollout correction (rollout_rs: token_k1, seq_mean_k3 and
    so on)."""

    # two more: difference of probabilities; squared log-ratio, of which the mean has a bound
    measure: Measure = "k1"
    over: Literal["token", "sum", "mean", "max"] = "token"
    low: float = 0.0
    high: float = math.inf
    # tokens of any, of negative advantage; those driven further from ratio 1
    applies_to: Literal["all", "negative", "outward"] = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A weight and any number of rejections, each at a level of its own. A token is kept that none
    rejects."""

    weight: Weight | None = None
    rejections: tuple[Rejection, ...] = ()
    # tokens that a sample's mean counts: dropped ones are zeros, or are not there
    mean_over: Literal["all", "kept"] = "all"
    veto: float | None = None  # a token with a ratio below this drops its whole sample
    batch_normalize: bool = False  # weights are divided by their mean over the optimizer step
    # old/rollout, PPO's ratio is new/old; new/rollout for both
    ratio: Literal["decoupled", "bypass"] = "decoupled"
    ppo_clip: bool = True  # False: the rejections take the clip's place
    # PPO's clip is set, step by step, so that capped at it the mean squared log-ratio of tokens
    # driven away from ratio 1 is at most this (M2PO's authors)
    clip_budget: float | None = None
    kl_tau: float = 0.0  # kl_tau * (log new - log rollout)^2 of every token is added to the loss

    @property
    def weighted(self) -> bool:
        return self.weight is not None

    @property
    def drops(self) -> bool:
        return bool(self.rejections) or self.veto is not None

    @property
    def active(self) -> bool:
        """Does it weigh or drop?"""
        return self.weighted or self.drops

    @property
    def looks_at_moments(self) -> bool:
        return self.clip_budget is not None or any(
            r.measure == "second_moment" for r in self.rejections
        )

    @property
    def needs_statistics(self) -> bool:
        """Must the whole optimizer step be looked at before any of its tokens (in one more forward
        pass)?"""
        return self.batch_normalize or self.looks_at_moments

    @property
    def level(self) -> Level:
        """At which the ratio is told: the weight's, else the first rejection's."""
        if self.weight is not None:
            return self.weight.level
        over = self.rejections[0].over if self.rejections else "token"
        return "sequence" if over == "sum" else "geometric" if over == "mean" else "token"


MEASURES = ("k1", "k2", "k3")
_OVER = {"token": "token", "seq_sum": "sum", "seq_mean": "mean", "seq_max": "max"}
REJECTIONS = tuple(
    f"{over}_{k}" for over in _OVER for k in MEASURES if (over, k) != ("seq_max", "k1")
)


def parse_rejection(text: str) -> Rejection:
    """`NAME:HIGH` or, of k1, `NAME:LOW:HIGH`, NAME as in verl's rollout_rs: seq_mean_k3:0.01,
    token_k1:0.5:2. Raises ConfigError."""
    name, *words = text.split(":")
    said = f"--correction-reject {text}:"
    if name not in REJECTIONS:
        raise ConfigError(f"{said} {name!r} is none of {', '.join(REJECTIONS)}")
    over, _, measure = name.rpartition("_")
    try:
        bounds = [float(word) for word in words]
    except ValueError:
        bounds = []
    if len(bounds) != (2 if measure == "k1" else 1) or not all(map(math.isfinite, bounds)):
        form = f"{name}:LOW:HIGH, bounds of the ratio" if measure == "k1" else f"{name}:HIGH"
        raise ConfigError(f"{said} expected {form}")
    low, high = bounds if measure == "k1" else (0.0, bounds[0])
    if high <= 0 or (measure == "k1" and not 0 <= low <= 1 <= high):
        form = "low <= 1 <= high" if measure == "k1" else "a bound above 0"
        raise ConfigError(f"{said} it would drop what is on-policy; expected {form}")
    return Rejection(measure=measure, over=_OVER[over], low=low, high=high)  # type: ignore[arg-type]
