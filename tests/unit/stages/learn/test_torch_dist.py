"""Reading a torch_dist checkpoint's common part, where either kind of Megatron-core keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.errors import CheckpointError
from stages.learn.megatron import torch_dist

COMMON = {"iteration": 7, "scheduler": {"num_steps": 28}}


def written(folder: Path, *objects: tuple[str, Any], common: dict[str, Any]) -> Path:
    writer = torch_dist.Writer(folder)
    writer.add("weight", torch.arange(4.0), offset=[0], shape=[4])
    for key, value in objects:
        writer.add_object(key, value)
    writer.finish(common)
    return folder


def test_the_common_part_is_read_from_its_own_file(tmp_path: Path) -> None:
    assert torch_dist.read_common(written(tmp_path / "a", common=COMMON)) == COMMON


def test_the_common_part_is_read_from_among_the_tensors(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", ("common_state/shard_0_1", COMMON), common={})
    (folder / "common.pt").unlink()
    assert torch_dist.read_common(folder) == COMMON


def test_a_common_part_that_is_nowhere_is_said(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", common=COMMON)
    (folder / "common.pt").unlink()
    with pytest.raises(CheckpointError, match=r"common\.pt cannot be read"):
        torch_dist.read_common(folder)


def test_a_common_part_that_is_cut_off_is_said(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", ("common_state/shard_0_1", COMMON), common={})
    (folder / "common.pt").unlink()
    whole = (folder / torch_dist.FILE).read_bytes()
    (folder / torch_dist.FILE).write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match=r"common_state.* is cut off"):
        torch_dist.read_common(folder)
