"""Evaluation: fixed data sets, generated and scored as rollouts are, and what that tells."""

from stages.evaluate.evaluator import EvalSet, Evaluator
from stages.evaluate.function import FunctionEvaluator
from stages.evaluate.summary import NO_VERSION

__all__ = ["NO_VERSION", "EvalSet", "Evaluator", "FunctionEvaluator"]
