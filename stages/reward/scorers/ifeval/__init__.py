"""Instructions that a program can check: those of IFEval (Zhou et al. 2023, arXiv 2311.07911)."""

from stages.reward.scorers.ifeval.checks import CHECKS
from stages.reward.scorers.ifeval.scorer import ifeval

__all__ = ["CHECKS", "ifeval"]
