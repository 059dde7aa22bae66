"""What Megatron's process groups cost on a CPU."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.integration.learn import learner_cases as cases

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def num_gloo_loops() -> int:
    """Threads that gloo has for groups: one each, and it never rests."""
    gc.collect()  # groups of ranks of other tests, which are closed
    return sum(
        "gloo_tcp_loop" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir()
    )


def test_groups_of_the_same_ranks_are_one(tmp_path: Path) -> None:
    from stages.learn.megatron import start_rank

    folder = cases.make_model("qwen3", tmp_path / "model", tied=True)
    before = num_gloo_loops()
    rank = start_rank(cases.settings(folder))
    made = num_gloo_loops() - before
    rank.close()
    assert 1 <= made <= 3, "Megatron's twenty groups are all of this one rank"
