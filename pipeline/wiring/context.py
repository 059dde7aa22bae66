"""Where a run is and where it goes on from: its folder, its clock, and what a checkpoint says of
both."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from buffers.journal import FILE_NAME
from configs.command_line.dump import changed_flags, dump_config
from configs.command_line.preset_files import NOT_RESTORED
from configs.schema import Config, flat_args
from pipeline.core.errors import ConfigError
from pipeline.core.time import MonotonicTime
from pipeline.run.resume import ResumePoint, resume_point
from pipeline.run.rundir import RunDir, create_run_dir, point_latest, withdraw_run_dir
from pipeline.run.save_folder import check_save_folder, claim_save_folder
from pipeline.run.snapshot import read_state
from pipeline.schedule.clock import RolloutClock
from pipeline.schedule.rate_limiter import RateLimiter
from pipeline.wiring.finished import check_unfinished

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """Where the run is and where it goes on from."""

    config: Config
    args: SimpleNamespace
    run_dir: RunDir
    resumed: ResumePoint
    state: Mapping[str, Any] | None  # the state.json of the checkpoint to resume from
    clock: RolloutClock
    time: MonotonicTime

    @property
    def snapshot(self) -> Path | None:
        """The checkpoint to resume from."""
        return self.resumed.snapshot

    @property
    def config_text(self) -> str:
        """The text of config.yaml. --load is left out where the run goes on in its own folder:
        running that file again begins a new run."""
        config = self.config
        if self.resumed.home is not None:
            config = replace(config, run=replace(config.run, load=None))
        return dump_config(config)


def open_context(config: Config) -> RunContext:
    """Finds the run that --load means, or makes the folder of a new one. Raises ConfigError,
    CheckpointError; NothingToDo for a finished run."""
    point = resume_point(config.run)
    if config.run.save is not None:  # whatever the working folder will be when the run goes on
        config = replace(
            config, run=replace(config.run, save=str(Path(config.run.save).absolute()))
        )
    if point.home is not None:
        here = point.home.path
        config = replace(config, run=replace(config.run, name=here.name, runs_dir=str(here.parent)))
    check_save_folder(config.run.save, point.home)
    state = read_state(point.snapshot) if point.snapshot else None
    clock = make_clock(config)
    if state is not None:
        clock.load_state_dict(state["clock"])
    if clock.num_trained > config.run.num_rollout:
        raise ConfigError(
            f"--num-rollout {config.run.num_rollout}: {clock.num_trained} rollouts are trained in"
            f" {point.snapshot} already; expected at least as many, and more to go on"
        )
    check_unfinished(config.run, point, clock.num_trained)
    if point.ledger is not None:
        clock.skip_versions_until(point.ledger.policy_version)
    site = RunContext(
        config=config,
        args=flat_args(config),
        run_dir=point.home
        or create_run_dir(
            config.run.runs_dir, config.run.name or ("mock" if config.run.mock else "run")
        ),
        resumed=point,
        state=state,
        clock=clock,
        time=MonotonicTime(),
    )
    if point.home is None:  # one that goes on keeps what it had until it has begun
        site.run_dir.config.write_text(site.config_text, encoding="utf-8")
    return site


def begin(site: RunContext) -> None:
    """Engines and learner are up: from here on the run's folder says what it is."""
    run, text = site.config.run, site.config_text
    claim_save_folder(run.save, site.run_dir)
    if site.resumed.home is not None:
        before = site.run_dir.config
        old = before.read_text(encoding="utf-8") if before.exists() else text
        changed = changed_flags(old, text, but=NOT_RESTORED)
        logger.info(
            "going on with %s after %d rollouts, with that run's flags%s",
            site.run_dir.path,
            site.clock.num_trained,
            ", changed: " + ", ".join(changed) if changed else "",
        )
        if site.resumed.torn_bytes:
            logger.warning(
                "%s: its last line was cut off by a crash (%d bytes); left out",
                site.run_dir.buffer / FILE_NAME,
                site.resumed.torn_bytes,
            )
    site.run_dir.config.write_text(text, encoding="utf-8")
    point_latest(site.run_dir)


def withdraw(run_dir: RunDir) -> None:
    """Removes the folder of a run that never began, unless the folder was there before."""
    aside = withdraw_run_dir(run_dir)
    if aside is not None:
        print(f"the run never began; its logs are in {aside}", file=sys.stderr, flush=True)


def make_clock(config: Config) -> RolloutClock:
    """A clock at its beginning. Without a learner no push is ever due."""
    rollouts = config.run.num_rollout
    return RolloutClock(
        rollout_batch_size=config.num_fresh_groups,
        async_buffer_size=config.async_.async_buffer_size,
        update_weights_interval=(
            rollouts + 1 if config.run.debug_rollout_only else config.async_.update_weights_interval
        ),
        num_rollout=rollouts,
        max_staleness=(
            max(1, config.staleness_bound)
            if config.run.debug_rollout_only
            else config.staleness_bound
        ),
        limiter=RateLimiter.rollouts(
            fresh=config.num_fresh_groups,
            samples_per_insert=config.async_.samples_of_a_group,
            buffer_size=config.async_.async_buffer_size,
            min_size_to_sample=config.async_.min_size_to_sample,
        ),
    )
