"""What a --mock run leaves out of a configuration, because simulated engines do not have it; the
rest can be tried all the same."""

from __future__ import annotations

import logging
from dataclasses import replace

from configs.schema import Config, flat_args
from configs.schema.data import is_procedural
from pipeline.wiring.context import RunContext

logger = logging.getLogger(__name__)


def simulated(site: RunContext) -> RunContext:
    """The same run without experts and teacher; it logs what that leaves out. The run's folder
    keeps the configuration that was asked for."""
    config = _without_teacher(_without_experts(site.config))
    return site if config is site.config else replace(site, config=config, args=flat_args(config))


def _without_experts(config: Config) -> Config:
    if not config.algorithm.use_rollout_routing_replay:
        return config
    logger.warning(
        "--use-rollout-routing-replay does nothing under --mock: simulated engines have no experts"
    )
    return replace(config, algorithm=replace(config.algorithm, use_rollout_routing_replay=False))


def _without_teacher(config: Config) -> Config:
    if not config.distill.use_opd:
        return config
    data, reward = config.data, config.reward
    procedural = is_procedural(data.prompt_data)
    unscored = data.prompt_data is not None and not (
        reward.rm_type or reward.custom_rm_path or procedural
    )
    logger.warning(
        "--use-opd does nothing under --mock: simulated engines have no vocabulary that a teacher"
        " could share%s",
        "; rewards are random instead" if unscored else "",
    )
    return replace(
        config,
        distill=replace(config.distill, use_opd=False),
        reward=replace(reward, rm_type="random") if unscored else reward,
    )
