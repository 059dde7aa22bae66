r"""Where a response has its answer: after its thoughts, and in its last \boxed{...}."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# what RewardStage puts into a scorer's metadata beside the row's own: a prompt that is text
PROMPT = "__prompt__"
_BOX = "\\boxed"


def in_box(text: str) -> str | None:
    r"""What the last \boxed{...} of the text holds, braces within it balanced; None without one."""
    _, box, rest = text.rpartition(_BOX)
    rest = rest.lstrip()
    if not box or not rest.startswith("{"):
        return None
    depth = 0
    for place, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[1:place].strip()
    return None


def leaves_thinking(response: str, metadata: Mapping[str, Any]) -> str | None:
    """What comes after the thoughts; None where they do not end. A model thinks that says <think>,
    or whose prompt ends with it."""
    _, ended, solution = response.rpartition("</think>")
    if ended:
        return solution
    _, marked, solution = response.partition("###Response")
    if marked:
        return solution.partition("###Response")[0]
    thinks = "<think>" in response or str(metadata.get(PROMPT, "")).rstrip().endswith("<think>")
    return None if thinks else response


def boxed(
    scorer: Callable[[str, Any, Mapping[str, Any]], float],
    response: str,
    label: Any,
    metadata: Mapping[str, Any],
) -> float:
    r"""`scorer` on what the response's last \boxed holds; on no text without one."""
    return scorer(in_box(response) or "", label, metadata)
