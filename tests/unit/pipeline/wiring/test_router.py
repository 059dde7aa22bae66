"""What users' functions are told of a run when it starts, on the driver and on the ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.schema import Config, flat_args
from pipeline.wiring.context import open_context
from pipeline.wiring.router import make_router, tell_args
from stages.engine.mock import MockTokenizer
from tests.conftest import ROOT
from tests.unit.fake_engine import FakeEngineClient


def test_driver_and_ranks_are_told_the_same(tmp_path: Path) -> None:
    config = Config(megatron={"num_layers": 7}, custom={"mine": 1})
    config = replace(config, run=replace(config.run, mock=True, runs_dir=str(tmp_path)))
    site = open_context(config)
    model = f"tiny:{ROOT}/configs/models/tiny-qwen3.yaml"
    router = make_router(
        site, FakeEngineClient(), MockTokenizer(), model=model, current_version=lambda: 0
    )
    router.release()
    told = tell_args(site, router=router, model=model)
    assert vars(site.args) == vars(flat_args(told))
    assert (site.args.sglang_router_port, site.args.hf_checkpoint) == (router.port, model)
    # a flag of Megatron's goes over what the model says
    assert (site.args.num_layers, site.args.mine) == (7, 1) and site.args.hidden_size > 0
