"""A row of IFEval's data: several instructions, each followed or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.reward.scorers.ifbench import instructions_of
from stages.reward.scorers.ifeval.checks import CHECKS


def ifeval(response: str, label: Any, metadata: Mapping[str, Any]) -> dict[str, float]:
    """`score`: 1.0 when the response follows every instruction, strictly, else 0.0 (IFEval's
    prompt-level accuracy); `followed`: the share that it follows. Zhou et al. 2023, arXiv
    2311.07911, section 2. What comes before </think> is not read; no text follows nothing.

    `metadata`: `instruction_id_list` and `kwargs` (one object an instruction, or one for all; nulls
    are padding). ValueError for an unknown id, for a missing argument, and for a row without
    instructions; ModuleNotFoundError for a language without langdetect."""
    text = response.rpartition("</think>")[2]
    asked = instructions_of(metadata)
    followed = [_follows(text, name, arguments) for name, arguments in asked]
    return {"score": float(all(followed)), "followed": sum(followed) / len(followed)}


def _follows(text: str, name: str, arguments: Mapping[str, Any]) -> bool:
    check = CHECKS.get(name)
    if check is None:
        raise ValueError(
            f"instruction_id_list has {name!r}, which is none of IFEval's:"
            f" {', '.join(sorted(CHECKS))}"
        )
    try:
        return bool(text.strip()) and check(text, arguments)
    except KeyError as error:
        raise ValueError(f"{name}: its kwargs have no {error}") from error
