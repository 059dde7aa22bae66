"""A run says what it starts before anything that takes time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from configs.schema import Config
from pipeline.wiring.greeting import greeting
from tests.conftest import ROOT

HEAVY = ("torch", "ray", "sglang", "megatron", "transformers", "pyarrow", "aiohttp", "matplotlib")


def test_it_names_model_engines_and_ranks() -> None:
    config = Config()
    config = replace(
        config,
        run=replace(config.run, num_rollout=1),
        model=replace(config.model, hf_checkpoint="/models/Q", train_backend="fsdp"),
        cluster=replace(config.cluster, rollout_num_gpus=3, actor_num_gpus_per_node=2),
    )
    assert greeting(config) == (
        "slipstream: starting 1 rollout of 8 x 8 samples, with /models/Q, 3 engines,"
        " 2 learner ranks (fsdp) ..."
    )


def test_a_resumed_and_a_simulated_run_say_so() -> None:
    config = Config()
    resumed = replace(config, run=replace(config.run, load="runs/x", mock=True))
    assert greeting(resumed) == (
        "slipstream: going on with runs/x, to 100 rollouts of 8 x 8 samples,"
        " with simulated engines and learner ..."
    )


def test_it_is_said_before_the_first_heavy_import() -> None:
    """The clock is the machine's; what comes first is ours."""
    code = f"""
import sys
from configs.command_line.entry import parse_or_exit
from pipeline.wiring import FAMILIES, build
config = parse_or_exit(["--mock"], prog="p", families=FAMILIES)
class Stop(Exception): ...
class Out:
    def write(self, text):
        loaded = [name for name in {HEAVY!r} if name in sys.modules]
        sys.stderr.write(f"{{text.strip()}} | {{loaded}}")
        raise Stop
    def flush(self): ...
sys.stdout = Out()
try:
    build(config)
except Stop:
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.startswith("slipstream: starting 100 rollouts"), done.stderr
    assert done.stderr.endswith("| []"), done.stderr
