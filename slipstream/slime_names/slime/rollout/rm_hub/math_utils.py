"""Answers that are formulas."""

from __future__ import annotations

from pipeline.core.slime_names import refuse
from stages.reward.scorers import SCORERS
from stages.reward.scorers.boxed import in_box

__getattr__ = refuse("slime.rollout.rm_hub.math_utils")


def extract_answer(passage: str) -> str | None:
    r"""What the last \boxed{...} holds; None without one."""
    return in_box(passage)


extract_boxed_answer = extract_answer


def grade_answer_verl(solution_str: str, ground_truth: str) -> bool:
    r"""Is what the solution's last \boxed holds the same, as text or as formula?"""
    return bool(ground_truth) and SCORERS["deepscaler"](solution_str, ground_truth, {}) == 1.0


def grade_answer_sympy(given_answer: str, ground_truth: str) -> bool:
    return grade_answer_verl(f"\\boxed{{{given_answer}}}", ground_truth)


grade_answer_mathd = grade_answer_sympy
