#!/usr/bin/env python3
"""Asynchronous, off-policy, streaming GRPO: the algorithm on one screen.

Generators fill the replay buffer without ever waiting for the learner; the learner takes a rollout
as soon as every deadline allows it; new weights reach the engines in place, while they generate.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from configs.command_line.entry import parse_or_exit
from pipeline.wiring import FAMILIES, build, run_to_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.run.runner import Runner


async def train(run: Runner) -> None:
    # run.producing(): admit -> prompt -> generate -> reward -> filter -> replay buffer, for ever,
    # beside the loop below.
    async with run, run.producing():
        for rollout_id in run.rollouts():
            # a learner that dies in here is restored, and the loop goes on at its checkpoint
            async with run.surviving():
                groups = await run.take(rollout_id)  # waits only for groups whose deadline is due
                # advantages per group, micro-batches by token budget
                batch = run.batch(rollout_id, groups)
                # old log-probs recomputed, clipped loss, TIS against the rollout log-probs
                result = await run.learn(batch)
                # every N rollouts: staged, then given to engines while the next rollout is trained
                pushed = await run.push(rollout_id)
                run.record(rollout_id, groups, batch, result, pushed)
                run.evaluate(rollout_id)  # beside training, stamped with its policy versions
                await run.save(rollout_id)


def main(argv: Sequence[str] | None = None, prog: str = "train_async.py") -> None:
    words = sys.argv[1:] if argv is None else argv
    config = parse_or_exit(words, prog=prog, families=FAMILIES)
    sys.exit(run_to_end(train, lambda: build(config)))


if __name__ == "__main__":
    main()
