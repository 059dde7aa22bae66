"""Routing replay on two ranks: each gives its routers the tokens and the layers that are theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.integration import learner_cases as cases
from tests.integration import routing_cases as routing
from tests.integration.routing_ranks import LAYOUTS, OPTIMIZER, REPLAYS, train

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return routing.make_moe(tmp_path_factory.mktemp("model") / "moe")


@pytest.fixture(scope="module")
def pair(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    from stages.learn.megatron import load

    load()
    from stages.learn.rendezvous import serve_store

    out = tmp_path_factory.mktemp("pair")
    store, port = serve_store(2)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.integration.routing_ranks"]
    ranks = [
        subprocess.Popen([*command, str(r), str(port), str(model), str(out)], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    try:
        errors = [r.communicate(timeout=300)[1] for r in ranks]
    finally:
        for r in ranks:
            r.kill()
        del store
    assert [r.returncode for r in ranks] == [0, 0], "\n".join(errors)[-4000:]
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
                shared = name == "routing_mismatch"  # a prompt that two samples share counts once where both are in one micro-batch
                assert got[name] == pytest.approx(want[name], rel=0.05 if shared else 1e-4, abs=1e-5), (layout, name)
