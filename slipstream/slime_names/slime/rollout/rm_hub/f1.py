"""Words in common."""

from pipeline.core.slime_names import refuse
from stages.reward.scorers.words import shared_words

__getattr__ = refuse("slime.rollout.rm_hub.f1")


def f1_score(prediction: str, ground_truth: str) -> tuple[float, float, float]:
    """(F1, precision, recall) of the words, as --rm-type f1 counts them."""
    return shared_words(prediction, ground_truth)
