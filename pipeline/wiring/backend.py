"""The parts that differ between a real and a simulated run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.flops import TOKENS, Cost
from pipeline.core.protocols import Generate, Learner, Tokenizer, WeightTransport
from pipeline.run.pool_channel import EngineMembership
from pipeline.workers.rollout_group import RolloutGroup
from stages.generate.router import Router
from stages.reward import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The parts that differ between a real and a simulated run."""

    tokenizer: Tokenizer | None
    max_prompt_len: int | None  # in tokens of this tokenizer
    generate: Generate
    router: Router
    learner: Learner
    transport: WeightTransport
    engine_idle_seconds: Callable[[], Mapping[str, float]]
    # give it what is told (event, engine, reason)
    watch_engines: Callable[[Callable[[str, str, str], None]], None]
    # num_engines, num_healthy, num_running, num_restarts
    engine_counts: Callable[[], Mapping[str, int]]
    start: Callable[[], Awaitable[None]]
    # new ranks for a learner that is lost, with the weights of a checkpoint; None: with those that
    # the run began with
    restore_learner: Callable[[Path | None], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
    kill_now: Callable[[], None]
    workers: RolloutGroup | None = None  # with --num-rollout-workers: they make the groups
    membership: EngineMembership | None = None  # where engines may come and go
    teacher: Lease | None = None  # with --use-opd
    counts_tokens: bool = True  # are lengths those of the model's tokenizer?
    cost: Cost = TOKENS  # of a sample, in the model that is trained
