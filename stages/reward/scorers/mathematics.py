"""Answers that are formulas, compared by math-verify."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from pipeline.core.labels import accepted_answers
from stages.reward.scorers.boxed import in_box, leaves_thinking


def math(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 when math-verify finds the response's final answer (\\boxed, or the last expression)
    equal to the label's (to one of its answers), else 0.0. `\\$5` and `$5` are five dollars.

    ValueError where there is no label, or math-verify finds no expression in it: every response
    would look wrong."""
    from math_verify import parse, verify

    # it warns at every call that its own deadline is off
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # The caller has the deadline, on the whole process: math-verify's own would call what it could
    # not read in time wrong without a word, and cannot stop a power tower.
    said = parse(_without_dollars(response), parsing_timeout=None)
    return float(
        any(
            verify(_expressions(answer), said, timeout_seconds=None)
            for answer in accepted_answers(label)
        )
    )


def boxed_math(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """`math` on what the response's last \\boxed holds; without one 0.0."""
    held = in_box(response)
    return 0.0 if held is None else math(f"\\boxed{{{held}}}", label, metadata)


def deepscaler(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 when the last \\boxed of the solution equals the label (what its own \\boxed holds, where
    it has one; one of its answers, where it has several), as text or as formula, else 0.0:
    DeepScaleR's rule (Luo et al. 2025, the project agentica-project/rllm).

    The solution is what comes after </think>, or after ###Response. A model that thinks and does
    not end it has no solution; where nothing says that it thinks, the whole response is one.

    No label: ValueError.
    """
    solution = leaves_thinking(response, metadata)
    answer = None if solution is None else in_box(solution)
    truths = accepted_answers(label)
    return float(answer is not None and any(_same(answer, truth) for truth in truths))


def _same(answer: str, truth: str) -> bool:
    truth = in_box(truth) or truth
    if _bare(answer) == _bare(truth):
        return True
    try:
        return math(f"\\boxed{{{answer}}}", truth, {}) == 1.0
    except ValueError:  # the label is text, and not this one
        return False


def _bare(text: str) -> str:
    """Without what LaTeX puts around words, in lower case and without spaces."""
    inner = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\\[ !,;]|[\s$]", "", inner).rstrip(".").lower()


def _expressions(answer: str) -> list[Any]:
    """What math-verify reads in an answer of the label."""
    from math_verify import parse

    plain = _without_dollars(answer)
    if plain.count("$") == 1:  # one alone delimits nothing
        plain = plain.replace("$", "")
    text = plain
    if not any(mark in text for mark in ("$", "\\boxed", "\\(", "\\[")):
        # a bare formula: of bare text math-verify takes the last plain number, 2 of both 2\pi and
        # (1, 2)
        text = f"${text}$"
    found: list[Any] = parse(text, parsing_timeout=None) or parse(plain, parsing_timeout=None)
    if not any(not isinstance(part, str) for part in found):
        raise ValueError(
            f"math-verify finds no expression in the label {answer!r:.80}: is it text? Then use"
            " --rm-type exact_match"
        )
    return found


def _without_dollars(text: str) -> str:
    """Without `\\$`, which math-verify takes for the beginning of a formula."""
    return text.replace("\\$", "")
