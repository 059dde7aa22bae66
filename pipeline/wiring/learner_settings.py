"""The settings that the learner's ranks are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from configs.schema import Config
from pipeline.core.find_checkpoint import find_torch_dist
from pipeline.models.resolve import resolve_checkpoint
from pipeline.wiring.devices import dtype_of
from stages.learn.settings import LearnerSettings


def learner_settings(
    config: Config, folder: Path, device: Literal["cpu", "cuda"]
) -> LearnerSettings:
    model = dataclasses.replace(
        config.model,
        hf_checkpoint=str(folder.absolute()),
        device=device,
        dtype=dtype_of(config, device),
    )
    if model.initial_megatron_checkpoint:
        initial = find_torch_dist(
            Path(model.initial_megatron_checkpoint), "--initial-megatron-checkpoint"
        )
        model = dataclasses.replace(model, initial_megatron_checkpoint=str(initial.absolute()))
    algorithm = config.algorithm
    if algorithm.ref_load and algorithm.needs_reference:
        algorithm = dataclasses.replace(
            algorithm, ref_load=str(_reference(algorithm.ref_load, config.run.seed).absolute())
        )
    return LearnerSettings(
        config=dataclasses.replace(
            config, model=model, algorithm=algorithm, megatron=_megatron(config, device)
        ),
        num_optimizer_steps=config.run.num_rollout * config.steps_per_rollout,
    )


def _megatron(config: Config, device: str) -> Mapping[str, Any]:
    """Megatron's flags, and what they are on GPUs where nothing is said: optimizer state is shared
    by the data-parallel ranks, as slime has it. Whole, it takes 12 bytes a parameter on each."""
    shared = device == "cuda" and config.model.train_backend == "megatron"
    return {**({"use_distributed_optimizer": True} if shared else {}), **config.megatron}


def _reference(spec: str, seed: int) -> Path:
    """The folder of --ref-load: torch_dist, or anything that --hf-checkpoint takes."""
    if Path(spec).is_dir() and not (Path(spec) / "config.json").is_file():
        return find_torch_dist(Path(spec), "--ref-load")
    return resolve_checkpoint(spec, seed=seed)
