"""Routing replay on two ranks: each gives its routers the tokens and the layers that are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.learn import learner_cases as cases
from tests.integration.learn import routing_cases as routing
from tests.integration.learn.processes import run_ranks
from tests.integration.learn.routing_ranks import LAYOUTS, OPTIMIZER, REPLAYS, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routing.make_moe(tmp_path_factory.mktemp("model") / "moe")


@pytest.fixture(scope="module")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("pair")
    run_ranks(2, "routing_ranks", model, out)
    return [json.loads((out / f"found.{r}.json").read_text()) for r in range(2)]


@pytest.mark.parametrize("replay", REPLAYS)
def test_two_ranks_replay_as_one(model: Path, pair: list[dict[str, Any]], replay: str) -> None:
    from stages.learn.megatron import start_rank

    rank = start_rank(cases.settings(model, megatron=OPTIMIZER, **REPLAYS[replay]))
    want = train(rank)
    rank.close()
    for layout in LAYOUTS:
        for found in pair:
            got = found[f"{layout} {replay}"]
            assert got.keys() == want.keys()
            for name in got.keys() - cases.MEASURED:
                # a prompt that two samples share counts once where both are in one micro-batch
                shared = name == "routing_mismatch"
                assert got[name] == pytest.approx(
                    want[name], rel=0.05 if shared else 1e-4, abs=1e-5
                ), (layout, name)
