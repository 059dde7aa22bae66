"""What real and simulated runs share: clock, source, reward, filter, buffer, producer, evaluation,
records."""

from __future__ import annotations

import logging
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from buffers.replay_buffer import ReplayBuffer
from buffers.userfilter import UserFilter
from configs.corrections import asks_for_log_probs
from configs.hooks import load_hook
from configs.rules.cautions import cautions
from configs.schema import Config
from pipeline.core.engine_auth import engine_headers
from pipeline.core.protocols import Source
from pipeline.run.children import end_children
from pipeline.run.drops import Drops, causes_of
from pipeline.run.equal_rewards import EqualRewards
from pipeline.run.group_maker import MakeGroup
from pipeline.run.lookout import Lookout
from pipeline.run.loop_lag import LoopLag
from pipeline.run.parts import Parts
from pipeline.run.pool_channel import PoolChannel
from pipeline.run.producer import Producer
from pipeline.run.recorder import LogRollout, Recorder
from pipeline.run.rollout_producer import RolloutProducer
from pipeline.run.runner import Runner
from pipeline.run.watchdog import Watchdog
from pipeline.wiring.backend import Backend
from pipeline.wiring.batcher import Batcher
from pipeline.wiring.closing import save_batch, telemetry_of
from pipeline.wiring.context import RunContext, begin, open_context, withdraw
from pipeline.wiring.deadlines import request_seconds
from pipeline.wiring.evaluation import Scorers, build_evaluator, with_tokenizer
from pipeline.wiring.making import make_group_maker, make_priority
from pipeline.wiring.prompts import make_source
from pipeline.wiring.simulated import simulated
from pipeline.wiring.supervised import supervised
from stages.generate.rollout_function import RolloutFunction
from stages.reward import Lease, RewardStage, TeacherStage

logger = logging.getLogger(__name__)


def assemble(config: Config, *, started_at: float, watchdog: Watchdog | None = None) -> Runner:
    """The run that the configuration describes. One that cannot begin leaves no folder behind,
    unless it had one before."""
    site = open_context(config)
    undo = ExitStack()
    if site.resumed.home is None:
        undo.callback(withdraw, site.run_dir)
    try:
        return _assemble(site, started_at, undo, watchdog or Watchdog(site.time))
    except BaseException:
        undo.close()
        raise


def _assemble(site: RunContext, started_at: float, undo: ExitStack, watchdog: Watchdog) -> Runner:
    """`undo` collects what must be undone when the run never begins."""
    asked = site
    if site.config.run.mock:
        site = simulated(site)
    config = site.config
    if config.deterministic:
        random.seed(config.run.seed)
        np.random.seed(config.run.seed % 2**32)
    for caution in (*config.notes, *cautions(config)):
        logger.warning(caution)
    if config.run.mock:
        from pipeline.wiring.mock import mock_backend as make_backend
    else:
        from pipeline.wiring.real import real_backend as make_backend
    from pipeline.wiring.debug import half, kept_rollouts, saver, warn_of_what_is_left_out

    backend = supervised(site, half(make_backend(site), config))
    undo.callback(backend.router.release)
    source = make_source(site, backend)
    scorers = Scorers(config.reward, site.args)
    reward = _with_teacher(config, scorers.training, backend.teacher)
    buffer = kept_rollouts(config, site.clock) if config.run.trains_on_kept else _buffer(site)
    watchdog.watch_drops(
        Drops(buffer.statistics, causes_of(config), num_wanted=site.clock.batch_size)
    )
    batcher = Batcher(config, site.args, source, backend.cost)
    producer = _production(site, backend, source, reward, buffer, watchdog, batcher)
    telemetry, finish = telemetry_of(site)
    undo.callback(telemetry.close)
    warn_of_what_is_left_out(config)
    recorder = Recorder(
        telemetry=telemetry,
        clock=site.clock,
        time=site.time,
        started_at=started_at,
        counts=producer.counts,
        buffer_statistics=buffer.statistics,
        engine_idle_seconds=backend.engine_idle_seconds,
        engine_counts=backend.engine_counts,
        reward_key=config.reward.reward_key,
        log_samples=config.run.log_samples,
        on_finish=finish,
        equal_rewards=_equal_rewards(config),
        log_rollout=_log_rollout(site),
        loop_lag=LoopLag(),
        worker_lag=backend.workers.reports.lag if backend.workers else None,
    )
    if backend.workers is not None:
        backend.workers.reports.on_blocked = recorder.waits
    backend.watch_engines(
        lambda event, engine, reason: recorder.engine(event, engine=engine, reason=reason)
    )
    if site.state is not None:
        producer.load_state_dict(site.state["producer"])
        recorder.load_state_dict(site.state["recorder"])

    channel = PoolChannel(site.run_dir.path, backend.membership) if backend.membership else None

    async def start() -> None:
        await backend.start()
        if channel is not None:
            await channel.start()

    async def close() -> None:
        if channel is not None:
            await channel.close()
        buffer.close()
        try:
            await backend.close()
        finally:
            await reward.close()
            await scorers.close()

    def kill_now() -> None:
        backend.kill_now()
        if channel is not None:
            channel.release()
        end_children()
        telemetry.close()  # gives the terminal back
        undo.close()

    def began() -> None:
        begin(asked)
        undo.pop_all()

    return Runner(
        Parts(
            config=config,
            run_dir=site.run_dir.path,
            checkpoints=Path(config.run.save) if config.run.save else site.run_dir.checkpoints,
            began=began,
            abandon=undo.close,
            clock=site.clock,
            producer=producer,
            buffer=buffer,
            learner=backend.learner,
            transport=backend.transport,
            make_batch=batcher,
            save_batch=lambda batch: save_batch(batch, site.run_dir.path),
            save_rollout=saver(config),
            saves=not config.run.debug_rollout_only,
            snapshot=site.snapshot,
            restore_learner=backend.restore_learner,
            evaluator=build_evaluator(config, site.args, backend, scorers, source),
            recorder=recorder,
            watchdog=watchdog,
            lookout=Lookout(watchdog, recorder.waits),
            start=start,
            close=close,
            kill_now=kill_now,
        )
    )


def _production(
    site: RunContext,
    backend: Backend,
    source: Source,
    reward: RewardStage | TeacherStage,
    buffer: Any,
    watchdog: Watchdog,
    batcher: Batcher,
) -> Producer | RolloutProducer:
    config = site.config
    if config.rollout.rollout_function_path is not None:
        return RolloutProducer(
            source=source,
            make=RolloutFunction(
                config.rollout.rollout_function_path,
                with_tokenizer(site.args, backend),
                source,
                current_version=lambda: site.clock.policy_version,
                log_probs_for=asks_for_log_probs(site.args),
            ),
            reward=reward,
            buffer=buffer,
            clock=site.clock,
            watchdog=watchdog,
        )
    make: MakeGroup
    if backend.workers is None:
        make = make_group_maker(config, site.args, backend.generate, reward, watchdog=watchdog)
    else:
        make = backend.workers
        backend.workers.watchdog = watchdog
    return Producer(
        source=source,
        make=make,
        buffer=buffer,
        clock=site.clock,
        watchdog=watchdog,
        dropped=batcher.dropped,
    )


def _buffer(site: RunContext) -> ReplayBuffer:
    return ReplayBuffer(
        site.run_dir.buffer,
        site.config.async_,
        site.clock,
        ledger=site.resumed.ledger,
        restored_from=site.snapshot.name if site.snapshot else None,
        priority=make_priority(site.config, site.args),
        user_filter=_user_filter(site),
        made_ahead=site.config.rollout.rollout_function_path is not None,
        seed=site.config.run.seed,
    )


def _equal_rewards(config: Config) -> EqualRewards | None:
    """The watch for equal rewards; None where the run learns from something else, or where a user's
    function makes the advantages."""
    a = config.algorithm
    own = (
        a.custom_advantage_function_path,
        a.custom_reward_post_process_path,
        a.custom_convert_samples_to_train_data_path,
    )
    if a.loss_type != "policy_loss" or config.distill.use_opd or any(own):
        return None
    return EqualRewards(
        within_groups=a.rewards_normalization
        and a.advantage_estimator not in ("reinforce_plus_plus", "ppo")
    )


def _log_rollout(site: RunContext) -> LogRollout | None:
    spec = site.config.run.custom_rollout_log_function_path
    if spec is None:
        return None
    function = load_hook("custom_rollout_log_function_path", spec)
    return lambda rollout_id, samples, metrics, seconds: function(
        rollout_id, site.args, samples, dict(metrics), seconds
    )


def _user_filter(site: RunContext) -> UserFilter | None:
    spec = site.config.async_.buffer_filter_path
    return UserFilter(spec, load_hook("buffer_filter_path", spec), site.args) if spec else None


def _with_teacher(
    config: Config, scorer: RewardStage, lease: Lease | None
) -> RewardStage | TeacherStage:
    if lease is None:
        return scorer
    return TeacherStage(
        scorer,
        lease,
        scored=config.has_scorer,
        timeout_seconds=request_seconds(config),
        headers=engine_headers(config.sglang),
    )
