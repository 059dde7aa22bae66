"""--num-epoch: how many rollouts the data are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from configs.schema import Config
from pipeline.core.errors import ConfigError
from pipeline.core.row_slice import split_slice


def with_epochs(config: Config) -> Config:
    """The configuration with --num-rollout in the place of --num-epoch, as slime counts: an epoch
    has as many rollouts as its prompts fill. Rows that are skipped later count. Raises
    ConfigError."""
    epochs, spec = config.run.num_epoch, config.data.prompt_data
    if epochs is None:
        return config
    said = f"--num-epoch {epochs}"
    if spec is None:
        raise ConfigError(f"{said} without --prompt-data: nobody knows how many prompts there are")
    rows, size = _count(spec, said), config.num_fresh_groups
    if rows < size:
        raise ConfigError(
            f"{said}: --prompt-data {spec} has {rows} prompts, fewer than the {size} of a rollout"
            " (--rollout-batch-size). Say --num-rollout"
        )
    num_rollout = epochs * (rows // size)
    return replace(config, run=replace(config.run, num_rollout=num_rollout, num_epoch=None))


def _count(spec: str, said: str) -> int:
    if spec.startswith("reasoning_gym:"):
        pairs = spec.partition("?")[2].split("&")
        sizes = [pair.partition("=")[2] for pair in pairs if pair.startswith("size=")]
        if not sizes or not sizes[-1].isdigit():
            raise ConfigError(f"{said}: --prompt-data {spec} never ends; add size=1000, say, to it")
        return int(sizes[-1])
    if spec.startswith("verifiers:"):
        raise ConfigError(f"{said}: nobody knows how many prompts {spec} has. Say --num-rollout")
    path, part = split_slice(spec)
    return len(range(_count_rows(path))[part])


def _count_rows(path: Path) -> int:
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{path} cannot be read as Parquet: {error}") from error
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
