"""1 for the right colour, 0.1 for another one: a model that starts from nothing learns first that
colours are asked for."""

from __future__ import annotations

from typing import Any

COLOURS = ("red", "green", "blue", "yellow", "white", "black")


async def reward_func(args: Any, sample: Any) -> float:
    said = sample.response.strip()
    return 1.0 if said == sample.label else 0.1 if said in COLOURS else 0.0
