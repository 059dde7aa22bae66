"""Rewards beside those of slime's functions of the same name, as these gave them at its commit
624b824a8: where they differ, docs/rewards.md says so, and here is why."""

from __future__ import annotations

from typing import Any

import pytest

from stages.reward.scorers import SCORERS

# (response, label, slime's rm_type math, ours); slime's reads \boxed only, as boxed_math here
MATH = [
    (r"\boxed{42}", "42", 1.0, 1.0),
    (r"\boxed{\frac12}", "0.5", 1.0, 1.0),
    (r"\boxed{x=5}", "5", 1.0, 1.0),
    (r"\boxed{10\%}", "10", 1.0, 1.0),
    (r"\boxed{1,000}", "1000", 1.0, 1.0),
    (r"\boxed{2\sqrt{3}}", r"\sqrt{12}", 1.0, 1.0),
    (r"\boxed{(1,2)}", "(1, 2)", 1.0, 1.0),
    (r"\boxed{5 \text{ cm}}", "5", 1.0, 1.0),
    (r"\boxed{0.333}", r"\frac{1}{3}", 0.0, 0.0),
    (r"\boxed{1} or \boxed{2}", "1", 0.0, 0.0),
    (r"\boxed{\text{yes}}", "3", 0.0, 0.0),
    ("42", "42", 0.0, 1.0),  # right, and not boxed: data sets without that rule have such answers
    (r"so \frac{1}{2}", "0.5", 0.0, 1.0),
]
# f1: an answer that is an article's letter would have no word left, and no reward
F1 = [
    ("the cat", "A cat", 1.0, 1.0),
    ("Yes.", "yes", 1.0, 1.0),
    ("yes", "no", 0.0, 0.0),
    ("vitamin A", "Vitamin A", 1.0, 1.0),
    ("an", "an", 0.0, 0.0),
    ("B", "B", 1.0, 1.0),
    ("A", "A", 0.0, 1.0),
    ("a b", "a c", 0.0, 0.5),
]
# gpqa: an answer that is taken back is none; `a cat` names no option; a cathode is no cat
GPQA: list[tuple[str, str, dict[str, Any], float, float]] = [
    ("The answer is C", "C", {}, 1.0, 1.0),
    ("**C**", "C", {}, 1.0, 1.0),
    ("Answer: B. No, answer: C", "C", {}, 0.0, 1.0),
    ("A cat. Answer is (C)", "C", {}, 0.0, 1.0),
    ("I pick the cathode", "cat", {"choices": ["dog", "cat"]}, 1.0, 0.0),
]


@pytest.mark.parametrize(("response", "label", "slimes", "ours"), MATH)
def test_math(response: str, label: str, slimes: float, ours: float) -> None:
    assert SCORERS["math"](response, label, {}) == ours
    assert SCORERS["boxed_math"](response, label, {}) == slimes


@pytest.mark.parametrize(("response", "label", "slimes", "ours"), F1)
def test_f1(response: str, label: str, slimes: float, ours: float) -> None:
    assert SCORERS["f1"](response, label, {}) == ours >= slimes


@pytest.mark.parametrize(("response", "label", "metadata", "slimes", "ours"), GPQA)
def test_gpqa(
    response: str, label: str, metadata: dict[str, Any], slimes: float, ours: float
) -> None:
    assert SCORERS["gpqa"](response, label, metadata) == ours
