"""How the learner of a real run comes to its first weights, and comes back to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.run.warmup import warm_up
from pipeline.wiring.context import RunContext
from pipeline.workers.learner_group import LearnerGroup
from pipeline.workers.turns import EngineSwitch
from stages.batch import make_batch
from stages.publish.rolling import RollingTransport
from stages.source import answered, build_source, sft_pairs

Pairs = Iterator[tuple[list[int], list[int]]]


class LearnerLife:
    """Brings the ranks up: in the beginning, and again where they are lost."""

    def __init__(
        self,
        site: RunContext,
        learner: LearnerGroup,
        transport: RollingTransport,
        tokenizer: Any,
        *,
        engines: EngineSwitch | None,
        leaves_devices: bool,
    ) -> None:
        """`engines`: that leave the devices they share with the learner (--offload-rollout).
        `leaves_devices`: does the learner (--offload-train)?"""
        self._site, self._learner, self._transport = site, learner, transport
        self._tokenizer, self._engines, self._leaves = tokenizer, engines, leaves_devices
        self._pairs = self._warmup_pairs()  # now, for mistakes in them

    async def begin(self) -> None:
        """Raises ConfigError, CheckpointError or LearnerError."""
        await self._learner.start()
        await self._weights(self._site.snapshot, self._pairs)

    async def restore(self, snapshot: Path | None) -> None:
        """New ranks with the weights of this checkpoint; None: with those of the beginning, for
        which the warm-up is done again. Engines keep what they have until the next push.

        Raises what LearnerGroup.restart and .load do."""
        self._transport.sender_lost()
        if self._engines is not None:
            await self._engines.release()
        try:
            await self._learner.restart()
            await self._weights(snapshot, self._warmup_pairs())
        finally:
            if self._engines is not None:
                await self._engines.resume()
        await self._transport.sender_back()

    async def _weights(self, snapshot: Path | None, pairs: Pairs | None) -> None:
        config = self._site.config
        if snapshot is not None:
            await self._learner.load(snapshot)
        elif pairs is not None:
            cut = partial(make_batch, micro_batch_size=config.algorithm.samples_of_a_micro_batch)
            await warm_up(
                self._learner,
                pairs,
                config.warmup,
                config.algorithm,
                config.data_parallel_size,
                cut,
            )
        if self._leaves:
            await self._learner.offload()

    def _warmup_pairs(self) -> Pairs | None:
        """The pairs of the warm-up. None where there is no warm-up."""
        config = self._site.config
        if self._site.snapshot is not None or not config.warmup.sft_steps:
            return None
        source = build_source(
            config.warmup.sft_data or config.data.prompt_data,
            config.data,
            1,
            config.rollout.rollout_max_prompt_len,
            self._tokenizer,
            # A procedural task is seeded apart from the rollouts: the warm-up must not show their
            # prompts.
            seed=config.data.rollout_seed + 1,
            judge=answered,
        )
        return sft_pairs(source, self._tokenizer)
