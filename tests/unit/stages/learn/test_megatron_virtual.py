"""Virtual pipeline stages: micro-batches in multiples, flags resolved against the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import ConfigError
from stages.learn.megatron.virtual import in_multiples, resolve_virtual
from tests.integration.learn.learner_cases import make_samples


@given(st.lists(st.integers(1, 12), min_size=1, max_size=3), st.integers(1, 6), st.integers(1, 4))
def test_micro_batches_in_multiples(sizes: list[int], count: int, multiple: int) -> None:
    count = min([count, *sizes])
    per_rank = []
    for rank, size in enumerate(sizes):
        samples = make_samples([(2, 1 + i) for i in range(size)], rank)
        per_rank.append(tuple(tuple(samples[i::count]) for i in range(count)))
    fewest = min(sizes)
    out = [in_multiples(rank, multiple, fewest_samples=fewest) for rank in per_rank]
    assert (
        len({len(rank) for rank in out}) == 1
        and len(out[0]) % multiple == 0
        and all(mb for rank in out for mb in rank)
    )
    assert len(out[0]) >= min(count, min(sizes) // multiple * multiple)
    for before, after in zip(per_rank, out, strict=True):
        assert sorted(s.index for mb in before for s in mb) == sorted(
            s.index for mb in after for s in mb if s.loss_mask.any()
        )
        more = [s for mb in after for s in mb if not s.loss_mask.any()]
        assert len(more) == (max(0, multiple - sum(map(len, before))) if count % multiple else 0)


def test_stages_from_layers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 8}))
    two = {"pipeline_model_parallel_size": 2}
    name = "virtual_pipeline_model_parallel_size"
    assert resolve_virtual(two, 2, tmp_path)[name] == 2
    assert resolve_virtual(two, 4, tmp_path)[name] is None
    assert resolve_virtual({**two, name: 4}, None, tmp_path)[name] == 4
    assert resolve_virtual(two, None, tmp_path) == two
    with pytest.raises(
        ConfigError,
        match=(
            "--num-layers-per-virtual-pipeline-stage 3 x --pipeline-model-parallel-size 2 does not"
            " divide the 8"
        ),
    ):
        resolve_virtual(two, 3, tmp_path)
    with pytest.raises(ConfigError, match="--virtual-pipeline-model-parallel-size 3"):
        resolve_virtual({**two, name: 3}, None, tmp_path)
    assert (
        resolve_virtual({**two, name: 3, "num_layers_in_first_pipeline_stage": 3}, None, tmp_path)[
            name
        ]
        == 3
    )
