"""On an MDP whose every sequence is enumerated: what theory says of the gradients' expectations,
exactly."""

from __future__ import annotations

import pytest

from benchmarks.toy_gradients import CONFIGS, World, moments
from configs.schema import AlgorithmConfig


@pytest.mark.parametrize("staleness", [0, 4, 16])
def test_sequence_importance_sampling_is_unbiased_and_others_are_not(staleness: int) -> None:
    world = World(seed=3)
    history = world.history()
    logits, behaviour = history[-1], history[-1 - staleness]
    exact = world.gradient(logits).flatten()

    def bias(name: str) -> float:
        return float(
            (moments(world, logits, behaviour, AlgorithmConfig(**CONFIGS[name]))[0] - exact).norm()
            / exact.norm()
        )

    assert bias("sequence IS, no bound") < 1e-6
    for name in ("none", "tis", "icepop"):
        assert (bias(name) < 1e-6) == (staleness == 0), name
    assert bias("tis") <= bias("none")
