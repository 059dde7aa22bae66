"""What real and simulated runs share: clock, source, reward, filter, buffer, producer, evaluation,
records."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from buffers.priority import Priority, reward_std, user_priority
from buffers.replay_buffer import ReplayBuffer
from buffers.userfilter import UserFilter
from configs.hooks import load_hook
from configs.rules.cautions import cautions
from configs.schema import Config
from pipeline.core.deadline import Deadline
from pipeline.core.flops import TOKENS, Cost
from pipeline.core.protocols import Generate, Learner, Reward, Source, Tokenizer, WeightTransport
from pipeline.core.types import Sample, TrainBatch
from pipeline.run.equal_rewards import EqualRewards
from pipeline.run.lookout import Lookout
from pipeline.run.producer import Producer
from pipeline.run.recorder import Recorder
from pipeline.run.runner import Parts, Runner
from pipeline.run.watchdog import Watchdog
from pipeline.telemetry import open_telemetry
from pipeline.wiring.batcher import Batcher
from pipeline.wiring.context import RunContext, begin, open_context, withdraw
from pipeline.wiring.simulated import simulated
from stages.evaluate import Evaluator
from stages.filter import build_filter
from stages.reward import Lease, RewardStage, TeacherStage, build_reward
from stages.source import UserSource, build_source, scored_by

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """What differs between a real and a simulated run."""

    tokenizer: Tokenizer | None
    max_prompt_len: int | None  # in tokens of this tokenizer
    generate: Generate
    learner: Learner
    transport: WeightTransport
    engine_idle_seconds: Callable[[], Mapping[str, float]]
    # give it what is told (event, engine, reason)
    watch_engines: Callable[[Callable[[str, str, str], None]], None]
    # num_engines, num_healthy, num_running, num_restarts
    engine_counts: Callable[[], Mapping[str, int]]
    start: Callable[[], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    kill_now: Callable[[], None]
    teacher: Lease | None = None  # with --use-opd
    cost: Cost = TOKENS  # of a sample, in the model that is trained


def assemble(config: Config, *, started_at: float, watchdog: Watchdog | None = None) -> Runner:
    """A run that cannot begin leaves no folder behind, unless it had one before."""
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
    """`undo`: what is to be done when the run never begins."""
    asked = site
    if site.config.run.mock:
        site = simulated(site)
    config = site.config
    if config.deterministic:
        random.seed(config.run.seed)
        np.random.seed(config.run.seed % 2**32)
    for caution in cautions(config):
        logger.warning(caution)
    if config.run.mock:
        from pipeline.wiring.mock import mock_backend as make_backend
    else:
        from pipeline.wiring.real import real_backend as make_backend
    from pipeline.wiring.debug import half, recorded_buffer, saver, warn_of_what_is_left_out

    backend = half(make_backend(site), config.run)
    source = _prompts(site, backend)
    scorer = build_reward(config.reward, site.args)
    reward = _with_teacher(config, scorer, backend.teacher)
    buffer = recorded_buffer(config, site.clock) if config.run.trains_on_records else _buffer(site)
    batcher = Batcher(config, site.args, source, backend.cost)
    producer = Producer(
        source=source,
        generate=backend.generate,
        reward=reward,
        keep=build_filter(config.rollout.dynamic_sampling_filter_path, site.args),
        buffer=buffer,
        clock=site.clock,
        group_max_retries=config.rollout.group_max_retries,
        deadline=Deadline(*config.rollout.episode_deadline),
        watchdog=watchdog,
        dropped=batcher.dropped,
    )
    telemetry, finish = _telemetry(site)
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
    )
    backend.watch_engines(
        lambda event, engine, reason: recorder.engine(event, engine=engine, reason=reason)
    )
    if site.state is not None:
        producer.load_state_dict(site.state["producer"])
        recorder.load_state_dict(site.state["recorder"])

    async def close() -> None:
        buffer.close()
        try:
            await backend.close()
        finally:
            await reward.close()
            await scorer.close()

    def kill_now() -> None:
        backend.kill_now()
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
            evaluator=_evaluator(config, backend, scorer),
            recorder=recorder,
            watchdog=watchdog,
            lookout=Lookout(watchdog, recorder.waits),
            start=backend.start,
            close=close,
            kill_now=kill_now,
        )
    )


def _buffer(site: RunContext) -> ReplayBuffer:
    return ReplayBuffer(
        site.run_dir.buffer,
        site.config.async_,
        site.clock,
        ledger=site.resumed.ledger,
        restored_from=site.snapshot.name if site.snapshot else None,
        priority=_priority(site),
        user_filter=_user_filter(site),
        seed=site.config.run.seed,
    )


def _priority(site: RunContext) -> Priority:
    spec = site.config.async_.buffer_priority_path
    if spec is None:
        return lambda group: reward_std(group, site.config.reward.reward_key)
    return user_priority(spec, load_hook("buffer_priority_path", spec), site.args)


def _equal_rewards(config: Config) -> EqualRewards | None:
    """None where something else than rewards is learned from, or a user's function makes the
    advantages."""
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


def _user_filter(site: RunContext) -> UserFilter | None:
    spec = site.config.async_.buffer_filter_path
    return UserFilter(spec, load_hook("buffer_filter_path", spec), site.args) if spec else None


def _prompts(site: RunContext, backend: Backend) -> Source:
    """--prompt-data; a --mock run without any gets sums, written where the run can be looked at."""
    if site.config.data.data_source_path is not None:
        return UserSource(
            site.config.data.data_source_path, site.args, site.config.rollout.n_samples_per_prompt
        )
    if site.config.data.prompt_data is not None:
        return build_source(
            site.config.data.prompt_data,
            site.config.data,
            site.config.rollout.n_samples_per_prompt,
            backend.max_prompt_len,
            backend.tokenizer,
            judge=scored_by(site.config.reward),
        )
    path = site.run_dir.path / "prompts.jsonl"
    rows = [
        {"prompt": f"{a} + {b} =", "label": str(a + b), "metadata": {"rm_type": "exact_match"}}
        for a in range(20)
        for b in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return build_source(
        str(path),
        replace(site.config.data, label_key="label"),
        site.config.rollout.n_samples_per_prompt,
        None,
        backend.tokenizer,
    )


def _with_teacher(
    config: Config, scorer: RewardStage, lease: Lease | None
) -> RewardStage | TeacherStage:
    if lease is None:
        return scorer
    return TeacherStage(
        scorer,
        lease,
        scored=config.has_scorer,
        timeout_seconds=config.rollout.generate_timeout_seconds,
    )


def _evaluator(config: Config, backend: Backend, reward: Reward) -> Evaluator | None:
    if not config.eval.eval_interval or config.run.trains_on_records:
        return None
    datasets: dict[str, list[Sample]] = {}
    for name, spec in eval_datasets(config.eval.eval_prompt_data):
        source = build_source(
            spec,
            config.data,
            1,
            backend.max_prompt_len,
            backend.tokenizer,
            judge=scored_by(config.reward),
        )
        datasets[name] = [group[0] for group in source.all_prompts(config.eval.eval_max_prompts)]
    return Evaluator(
        backend.generate,
        reward,
        datasets,
        config.eval,
        reward_key=config.reward.reward_key,
        deadline=Deadline(*config.eval.episode_deadline(config.rollout)),
    )


def eval_datasets(words: Sequence[str]) -> list[tuple[str, str]]:
    """`NAME PATH NAME PATH ...`, or one PATH (named eval)."""
    return (
        [("eval", words[0])] if len(words) == 1 else list(zip(words[::2], words[1::2], strict=True))
    )


def _telemetry(site: RunContext) -> tuple[Any, Callable[[float, bool], None]]:
    from pipeline.report import closing_lines, write_report, write_summary

    telemetry = open_telemetry(
        site.run_dir,
        site.config,
        resumed_at=site.clock.num_trained if site.resumed.home is not None else None,
    )

    def finish(wall_seconds: float, interrupted: bool) -> None:
        telemetry.close()
        summary = write_summary(site.run_dir.path, wall_seconds=wall_seconds)
        try:
            write_report(site.run_dir.path, wall_seconds=wall_seconds)
        except Exception:  # a picture of the run must not turn a good run into a failed one
            logger.exception(
                "the report was not written; `python -m pipeline report %s` tries again",
                site.run_dir.path,
            )
        for line in closing_lines(site.run_dir.path, summary):
            print(line, flush=True)

    return telemetry, finish


def save_batch(batch: TrainBatch, folder: Path) -> Path:
    """What a refused step was given, as one .npz (no pickle): arrays named s<step>_<field>, samples
    one after the other."""
    arrays: dict[str, np.ndarray] = {
        "rollout_id": np.asarray(batch.rollout_id),
        "policy_version": np.asarray(batch.policy_version),
    }
    for number, step in enumerate(batch.steps):
        samples = [s for rank in step.per_rank for micro_batch in rank for s in micro_batch]
        for name in (
            "index",
            "group_index",
            "response_length",
            "reward",
            "staleness",
            "num_tokens",
            "weight",
        ):
            arrays[f"s{number}_{name}"] = np.asarray([getattr(s, name) for s in samples])
        for name in ("tokens", "loss_mask", "rollout_log_probs", "advantages"):
            arrays[f"s{number}_{name}"] = np.concatenate([getattr(s, name) for s in samples])
    path = folder / f"refused-batch-{batch.rollout_id:06d}.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return path
