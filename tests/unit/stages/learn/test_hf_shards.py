"""A Hugging Face folder that several processes write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import CheckpointError
from stages.learn.hf_folder import HfFolder, begin_hf_folder, finish_hf_folder, part_of
from stages.learn.hf_shards import write_shards

WEIGHTS = [
    {f"{writer}.{i}": torch.full((4,), 10.0 * writer + i) for i in range(count)}  # 16 bytes each
    for writer, count in enumerate((3, 0, 1))
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text('{"torch_dtype": "float16"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"old")
    return folder


def test_each_writes_its_own_files_and_the_index_knows_all(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "made"
    begin_hf_folder(source, path)
    shards = [
        write_shards(iter(weights.items()), part_of(path), 32, writer=i)
        for i, weights in enumerate(WEIGHTS)
    ]
    assert not path.exists()
    assert finish_hf_folder(shards, source, path) == 4 * 16
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        *("model.safetensors.index.json", "tokenizer.json"),
    ]
    folder = HfFolder(path)
    expected = {name: t for weights in WEIGHTS for name, t in weights.items()}
    assert folder.names == expected.keys()
    assert all(torch.equal(folder[name], tensor) for name, tensor in expected.items())
    assert json.loads((path / "config.json").read_text()) == {"dtype": "float32"}
    assert not part_of(path).exists()


def test_one_file_needs_no_index(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "made"
    begin_hf_folder(source, path)
    shards = [
        write_shards(iter(w.items()), part_of(path), 32, writer=i)
        for i, w in enumerate(WEIGHTS[1:])
    ]
    finish_hf_folder(shards, source, path)
    assert [file.name for file in path.glob("model*")] == ["model.safetensors"]


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        begin_hf_folder(tmp_path, tmp_path / "made")
    assert not part_of(tmp_path / "made").exists()
