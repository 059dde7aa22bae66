"""Environments as users of verifiers write them: one turn, several turns, tools."""

from __future__ import annotations

import time
from typing import Any

import verifiers as vf
from datasets import Dataset


def add(a: int, b: int) -> int:
    """Adds."""
    if a == 13:
        raise ValueError("unlucky")
    return a + b


class Turns(vf.MultiTurnEnv):
    async def setup_state(self, state: Any, **more: Any) -> Any:
        state["said"] = 0
        return state

    async def env_response(self, messages: Any, state: Any, **more: Any) -> Any:
        state["said"] += 1
        if "raise" in str(messages[-1].content):
            raise ValueError("no such move")
        if "exit" in str(messages[-1].content):
            raise SystemExit(3)
        if state["said"] == 2:
            state["final_env_response"] = [{"role": "user", "content": "over"}]
        return [{"role": "user", "content": f"turn {state['said']}"}]


def right(completion: Any, answer: str, **more: Any) -> float:
    time.sleep(0)  # plain: it may block
    return float(answer in str(completion[-1].content))


def wrong(completion: Any) -> float:
    raise RuntimeError("the judge is away")


def load_environment(kind: str = "single", size: int = 2) -> Any:
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(size)]
    rubric = vf.Rubric(funcs=[wrong if kind == "wrong" else right])
    given = {"dataset": Dataset.from_list(rows), "rubric": rubric, "system_prompt": "Be brief."}
    if kind in ("single", "wrong"):
        return vf.SingleTurnEnv(**given)
    return vf.ToolEnv(tools=[add], **given) if kind == "tool" else Turns(max_turns=5, **given)
