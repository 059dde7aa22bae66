"""Instructions that a program can check: IFBench's own rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from configs.rules.rewards import why_missing


def ifbench(response: str, label: Any, metadata: Mapping[str, Any]) -> float:
    """1.0 when the response follows every instruction, strictly, else 0.0: IFBench (Pyatkin et al.
    2025, arXiv 2507.02833), by its own `evaluation_lib`.

    `metadata` is a row of its data: `instruction_id_list`, `kwargs` (one object an instruction, or
    one for all), `prompt_text`, `record_id`. ModuleNotFoundError where IFBench is not there,
    ValueError for a row without instructions.
    """
    if missing := why_missing("ifbench"):
        raise ModuleNotFoundError(missing)
    asked_for = instructions_of(metadata)
    import evaluation_lib as rules

    prompt = str(metadata.get("prompt_text") or "")
    asked = rules.InputExample(
        key=int(metadata.get("record_id") or 0),
        instruction_id_list=[name for name, _ in asked_for],
        prompt=prompt,
        kwargs=[arguments for _, arguments in asked_for],
    )
    outcome = rules.test_instruction_following_strict(asked, {prompt: response})
    return float(outcome.follow_all_instructions)


def instructions_of(metadata: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(id, arguments) of each instruction of a row of IFBench's or IFEval's data. ValueError for a
    row without."""
    names = [str(name).strip() for name in metadata.get("instruction_id_list") or () if name]
    if not names:
        raise ValueError(
            "metadata has no instruction_id_list: expected a row of IFEval's or IFBench's data"
        )
    return list(zip(names, _arguments(metadata.get("kwargs"), len(names)), strict=True))


def _arguments(given: Any, number: int) -> list[dict[str, Any]]:
    """Of each instruction, without those that are null (padding)."""
    one = given if isinstance(given, Mapping) else {}
    several = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
    several = (several or [one] * number)[:number]
    several += [several[-1]] * (number - len(several))
    return [{k: v for k, v in dict(each or {}).items() if v is not None} for each in several]
