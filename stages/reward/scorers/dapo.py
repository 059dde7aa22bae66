"""DAPO's reward: 1 for the right whole number behind `Answer:`, -1 for anything else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.core.labels import accepted_answers, whole_number

_LAST_CHARACTERS = 300  # of a response are read
_ANSWER = re.compile(r"(?i)answer\s*:\s*([^\n]+)")
_NONE = "[INVALID]"  # the answer of a response that names none

# Minerva's rules: what is said around a number without changing it. Some are words and units, in
# the order in which they are taken out; in front of them are articles and spaces.
_REPLACED = (("an ", ""), ("a ", ""), (".$", "$"), (r"\$", ""), (r"\ ", ""), (" ", ""))
_UNITS = (
    *("square", "ways", "integers", "dollars", "mph", "inches", "hours", "km", "units", "sue"),
    *("points", "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters"),
    *("meals", "edges", "students", "childrentickets", "multiples"),
)
_MARKS = (
    *(r"\ldots", r"\dots", r"\mathrm{th}", r"^\circ", r"^{\circ}", r"\;", r",\!", "{,}", '"'),
    *(r"\text{s}", r"\text{.}", r"\text{m}", r"\text{}^2", r"\text{}^3", r"\text{}"),
    *("<|im_end|>", "<|endoftext|>"),
)


def dapo(response: str, label: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`score` 1.0 or -1.0, `acc` whether it is right, `pred` the answer as it was read: of what
    stands behind the last `Answer:`, in the last 300 characters, after Minerva's normalisation.

    DAPO (Yu et al. 2025, arXiv 2503.14476), sections 2.4 and 3.5 and the project
    BytedTsinghua-SIA/DAPO; Minerva (Lewkowycz et al. 2022, arXiv 2206.14858), appendix D.1. A label
    that is no whole number: ValueError.
    """
    found = _ANSWER.findall(response[-_LAST_CHARACTERS:])
    said = normalised(found[-1]) if found else _NONE
    right = said in {str(whole_number(answer)) for answer in accepted_answers(label)}
    return {"score": 1.0 if right else -1.0, "acc": float(right), "pred": said}


def normalised(answer: str) -> str:
    """The number in an answer, as far as Minerva's rules lay it bare; else what they leave."""
    text = answer.rpartition("=")[2]
    for what, instead in _REPLACED:
        text = text.replace(what, instead)
    text = text.replace("mbox", "text")
    for word in (*_UNITS, *_MARKS):
        text = text.replace(word, "")
    if formula := re.search(r"\$(.*?)\$", text):
        text = formula[1]
    text = re.sub(r"\\(?:text|textbf|overline)\{(.*?)\}", r"\1", text)
    text = re.sub(r"\\boxed\{(.*)\}", r"\1", text).replace("$", "")
    digits = text.replace(",", "")
    return (digits if digits.isdigit() else text).strip()
