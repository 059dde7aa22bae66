"""Evaluation: fixed data sets, generated and scored as rollouts are, and what that tells."""

from stages.evaluate.evaluator import MAX_CONCURRENT_PROMPTS, EvalSet, Evaluator
from stages.evaluate.function import FunctionEvaluator
from stages.evaluate.summary import NO_VERSION

__all__ = ["MAX_CONCURRENT_PROMPTS", "NO_VERSION", "EvalSet", "Evaluator", "FunctionEvaluator"]
