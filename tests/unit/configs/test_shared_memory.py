"""Which runs take weights out of the learner's memory, and which cannot."""

from __future__ import annotations

import pytest

from configs.command_line.loader import load_config
from pipeline.core.errors import ConfigError

COLOCATED = "--mock --async-buffer-size 0 --colocate --actor-num-gpus-per-node 4"


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (COLOCATED, "tensor"),
        (f"{COLOCATED} --rollout-num-gpus-per-engine 2", "tensor"),
        (f"{COLOCATED} --weight-transport disk", "disk"),
        (f"{COLOCATED} --actor-num-nodes 2", "disk"),
        (f"{COLOCATED} --rollout-num-gpus 8", "disk"),
        ("--mock", "distributed"),
    ],
)
def test_colocated_engines_take_weights_out_of_memory_by_default(words: str, way: str) -> None:
    assert load_config(words.split()).cluster.weight_transport == way


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--mock", "without --colocate"),
        (f"{COLOCATED} --actor-num-nodes 2", "--actor-num-nodes 2"),
        (f"{COLOCATED} --rollout-num-gpus 8", "--rollout-num-gpus 8 with 4 learner ranks"),
    ],
)
def test_engines_without_a_device_in_common_are_refused(words: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([*words.split(), "--weight-transport", "tensor"])
    said = str(caught.value)
    assert named in said and "--weight-transport tensor" in said and "disk" in said
