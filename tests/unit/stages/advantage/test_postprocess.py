"""--rollout-data-postprocess-path: the last word on loss masks and advantages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.schema import AlgorithmConfig
from pipeline.core.errors import DataError
from pipeline.core.types import TrainSample
from stages.advantage import compute_advantages
from stages.advantage.postprocess import load_postprocess
from tests.unit.repository.test_hook_examples import groups


def processed(folder: Path, body: str) -> list[TrainSample]:
    file = folder / "post.py"
    file.write_text(f"def postprocess_rollout_data(args, rollout_id, data):\n    {body}\n")
    config = AlgorithmConfig(rollout_data_postprocess_path=str(file))
    postprocess = load_postprocess(config, SimpleNamespace())
    assert postprocess is not None
    return postprocess(5, compute_advantages(groups([0.0, 1.0]), policy_version=3))


def test_masks_and_advantages_are_read_back(tmp_path: Path) -> None:
    body = "data['loss_masks'][0][1] = 0; data['advantages'] = [[rollout_id] * n for n in (2, 3)]"
    first, second = processed(tmp_path, body)
    assert (first.loss_mask.tolist(), second.loss_mask.tolist()) == ([1, 0], [1, 1, 1])
    assert (first.advantages.tolist(), second.advantages.tolist()) == ([5, 5], [5, 5, 5])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("data['loss_masks'] = [[1, 1]]", "left loss_masks with 1 entries; expected 2"),
        ("data['loss_masks'] = None", "left loss_masks with 0 entries"),
        ("data['loss_masks'][1] = [1]", r"loss_masks with entry 1 of shape \(1,\)"),
        ("data['loss_masks'][0] = [1, 2]", r"loss_masks\[0\] holds other numbers than 0 and 1"),
        ("data['advantages'][1] = [0, 0, float('nan')]", "a finite number for every response"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, body: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        processed(tmp_path, body)


def test_without_the_flag_nothing_is_called() -> None:
    assert load_postprocess(AlgorithmConfig(), SimpleNamespace()) is None
