"""Multiple choice: the letter that a response settles on."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from stages.reward.scorers.boxed import in_box

_LETTERS = tuple(string.ascii_uppercase[:10])  # where a row does not say how many options it has
# a capital, or a small letter that ends its sentence; brackets, bold and LaTeX may stand before it
_LETTER = r"(?:[\s(\[{*$]|\\(?:text|boxed|mathbf|textbf))*([A-Z]\b|[a-z](?=\s*[.)\]}*$]|\s*$))"
_STATEMENTS = (
    re.compile(rf"(?i:\banswer)\b(?i:\s*(?:is|:))*{_LETTER}", re.MULTILINE),
    re.compile(rf"(?i:\b(?:option|choice))\b(?i:\s*(?:is|:))*{_LETTER}", re.MULTILINE),
    re.compile(r"\b([A-Z])\)?\s+(?i:is\s+(?:the\s+)?correct)"),
    re.compile(r"\b([A-Z])\b"),
)


def gpqa(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 for the right option of a multiple-choice question, else 0.0, as in the evaluations of
    GPQA (Rein et al. 2023, arXiv 2311.12022); what comes before </think> is not read.

    The right one: `metadata["correct_letter"]`, else the label: a letter, a place (0 is A), or the
    text of one of `metadata["choices"]`. The letters: `metadata["valid_letters"]`, else as many as
    there are choices, else A to J. The letter said: in the last \\boxed, else behind the last
    `answer`, `option` or `choice`, before `is correct`, else the last capital that stands alone.
    Where there is no letter to compare, the response must hold the text of the right answer.
    """
    text = response.rpartition("</think>")[2]
    choices = _choices(metadata)
    letters = _letters(metadata, choices)
    right, said = _right(label, metadata, choices, letters), _said(text, letters)
    if right is not None and said is not None:
        return float(said == right)
    return float(any(f" {t} " in f" {_plain(text)} " for t in _texts(label, metadata, right)))


def _choices(metadata: Mapping[str, Any]) -> list[str]:
    given = metadata.get("choices") or ()
    return [str(choice) for choice in (given.values() if isinstance(given, Mapping) else given)]


def _letters(metadata: Mapping[str, Any], choices: Sequence[str]) -> tuple[str, ...]:
    given = metadata.get("valid_letters")
    if given:
        return tuple(str(letter).upper() for letter in given)
    return tuple(string.ascii_uppercase[: len(choices)]) if choices else _LETTERS


def _right(
    label: Any, metadata: Mapping[str, Any], choices: Sequence[str], letters: Sequence[str]
) -> str | None:
    """The letter of the right option; None where there is only its text."""
    named = metadata.get("correct_letter")
    if isinstance(named, str):
        return named.strip().upper()
    if isinstance(label, int | float) and not isinstance(label, bool):
        return letters[int(label)] if 0 <= label < len(letters) else None
    if not isinstance(label, str):
        return None
    if label.strip().upper() in letters:
        return label.strip().upper()
    same = [place for place, choice in enumerate(choices) if _plain(choice) == _plain(label)]
    return letters[same[0]] if same and same[0] < len(letters) else None


def _said(text: str, letters: Sequence[str]) -> str | None:
    """The letter that the response settles on."""
    held = re.sub(r"\\text\w*|[^A-Za-z]", "", in_box(text) or "").upper()
    if held in letters:
        return held
    for statement in _STATEMENTS:
        found = [letter.upper() for letter in statement.findall(text)]
        valid = [letter for letter in found if letter in letters]
        if valid:
            return valid[-1]
    return None


def _texts(label: Any, metadata: Mapping[str, Any], right: str | None) -> set[str]:
    """The right answer in words, as far as the row says it."""
    choices = _choices(metadata)
    given = [metadata.get("correct_answer"), metadata.get("answer_text"), label]
    lettered = dict(zip(_letters(metadata, choices), choices, strict=False))
    given.append(lettered.get(right or ""))
    texts = {_plain(str(text)) for text in given if text is not None}
    return {text for text in texts if text and text != (right or "").lower()}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
