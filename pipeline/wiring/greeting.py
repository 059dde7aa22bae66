"""The first line of a run: what is being started, before anything that takes time."""

from __future__ import annotations

from configs.schema import Config
from pipeline.core.format import counted


def greeting(config: Config) -> str:
    """Who trains what with whom, in one line. Imports and opens nothing."""
    rollouts = counted(config.run.num_rollout, "rollout")
    size = f"{config.rollout.rollout_batch_size} x {config.rollout.n_samples_per_prompt} samples"
    if config.run.load is not None:
        begin = f"going on with {config.run.load}, to {rollouts} of {size}"
    else:
        begin = f"starting {rollouts} of {size}"
    return f"slipstream: {begin}, with {_who(config)} ..."


def _who(config: Config) -> str:
    if config.run.mock:
        return "simulated engines and learner"
    parts = [str(config.model.hf_checkpoint)]
    if config.has_engines:
        parts.append(counted(config.num_engines, "engine"))
    if not config.run.debug_rollout_only:
        ranks = counted(config.num_learner_ranks, "learner rank")
        parts.append(f"{ranks} ({config.model.train_backend})")
    return ", ".join(parts)
