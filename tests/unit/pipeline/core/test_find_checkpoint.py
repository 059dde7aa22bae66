"""Where a checkpoint's weights lie: every form that is found, and what is said of the others; the
flags that name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.command_line.loader import load_config
from pipeline.cli.convert import parse_size
from pipeline.core.errors import CheckpointError, ConfigError
from pipeline.core.find_checkpoint import find_torch_dist, find_weights
from tests.flags import later_wins

TORCH_DIST = '{"sharded_backend": "torch_dist"}'


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    """Megatron-LM's folder of two iterations, the second the latest."""
    for name in ("iter_0000050", "iter_0000100"):
        write(tmp_path / name / "metadata.json", TORCH_DIST)
    write(tmp_path / "latest_checkpointed_iteration.txt", "100\n")
    return tmp_path


def test_megatron_folders(megatron: Path) -> None:
    assert find_torch_dist(megatron, "--x") == megatron / "iter_0000100"
    assert find_torch_dist(megatron / "iter_0000050", "--x") == megatron / "iter_0000050"
    write(megatron / "release" / "mp_rank_00" / "model_optim_rng.pt")
    write(megatron / "latest_checkpointed_iteration.txt", "release")
    assert find_weights(megatron, "--x").format == "torch"
    with pytest.raises(
        CheckpointError, match=r"--x .* is of Megatron's older `torch` format: expected torch_dist"
    ):
        find_torch_dist(megatron, "--x")
    write(megatron / "latest_checkpointed_iteration.txt", "7")
    with pytest.raises(CheckpointError, match=r"says '7', but there is no folder iter_0000007"):
        find_weights(megatron, "--x")


def test_our_snapshots(tmp_path: Path) -> None:
    snapshot = tmp_path / "checkpoints" / "rollout_000002"
    write(snapshot / "torch_dist" / "metadata.json", TORCH_DIST)
    (tmp_path / "checkpoints" / "latest").symlink_to("rollout_000002")
    with pytest.raises(CheckpointError, match=r"no checkpoint found.* It holds checkpoints"):
        find_weights(tmp_path, "--x")  # torn: without its DONE marker
    write(snapshot / "DONE")
    for given in (tmp_path, tmp_path / "checkpoints", snapshot, snapshot / "torch_dist"):
        assert find_torch_dist(given, "--x") == snapshot / "torch_dist"


def test_others_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        find_weights(tmp_path / "no", "--x")
    write(tmp_path / "hf" / "config.json", "{}")
    with pytest.raises(CheckpointError, match="is a Hugging Face folder"):
        find_torch_dist(tmp_path / "hf", "--x")
    write(tmp_path / "zarr" / "metadata.json", '{"sharded_backend": "zarr"}')
    with pytest.raises(CheckpointError, match=r"sharded_backend 'zarr'.*0\.12 for zarr"):
        find_weights(tmp_path / "zarr", "--x")
    write(tmp_path / "odd" / "metadata.json", "[]")
    with pytest.raises(CheckpointError, match="not Megatron's"):
        find_weights(tmp_path / "odd", "--x")


@pytest.mark.parametrize(
    ("text", "size"), [("5GiB", 5 << 30), ("500MB", 500_000_000), ("1.5 kb", 1500), ("4096", 4096)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "big", "-1MB", "5 parsecs"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-shard-size"):
        parse_size(text)


def load(tmp_path: Path, *words: str) -> object:
    write(tmp_path / "model" / "config.json", "{}")
    write(tmp_path / "data.jsonl")
    base = [
        "--hf-checkpoint",
        f"{tmp_path}/model",
        "--prompt-data",
        f"{tmp_path}/data.jsonl",
        "--rm-type",
        "random",
    ]
    return load_config(later_wins([*base, *words]))


def test_flags_that_name_them(megatron: Path) -> None:
    for words in (
        (
            "--initial-megatron-checkpoint",
            str(megatron),
            "--ref-load",
            str(megatron / "iter_0000050"),
            "--use-kl-loss",
        ),
        (
            "--save-hf",
            "out/{rollout_id}",
            "--async-save",
            "--no-save-optim",
            "--no-load-optim",
            "--ckpt-format",
            "torch_dist",
        ),
        ("--save-hf", "none"),
    ):
        load(megatron, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--initial-megatron-checkpoint", "{}/model"),
            "--initial-megatron-checkpoint .* is a Hugging Face folder",
        ),
        (
            ("--initial-megatron-checkpoint", "{}/no"),
            "--initial-megatron-checkpoint .*no such folder",
        ),
        (("--ref-load", "{}/empty", "--use-kl-loss"), "--ref-load .*no checkpoint found"),
        (("--save-hf", "out"), r"--save-hf out: expected \{rollout_id\}"),
        (("--save-hf", "out/{step}"), r"--save-hf .*expected \{rollout_id\}"),
        (("--save-hf", "out/{"), r"--save-hf .*expected \{rollout_id\}"),
        (("--ckpt-format", "zarr"), "torch_dist"),
    ],
)
def test_flags_that_do_not(megatron: Path, words: tuple[str, ...], said: str) -> None:
    (megatron / "empty").mkdir()
    with pytest.raises(ConfigError, match=said):
        load(megatron, *(w.replace("{}", str(megatron)) for w in words))
