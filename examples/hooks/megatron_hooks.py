"""What a learner rank goes through, said in its log: for who wants to reach into Megatron.

--custom-megatron-init-path examples/hooks/megatron_hooks.py
--custom-megatron-before-log-prob-hook-path examples/hooks/megatron_hooks.py
--custom-megatron-before-train-step-hook-path examples/hooks/megatron_hooks.py
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger("slipstream.hooks")


def megatron_init(args: Any) -> None:
    """Once, when the process groups are there and no model is yet."""
    logger.info("Megatron is initialised, seed %d", args.seed)


def before_log_prob(args: Any, model: Sequence[Any], store_prefix: str) -> None:
    """`model`: this rank's parts. `store_prefix`: "" of the policy, "ref_" of the reference."""
    logger.info("log-probs of %d model parts, %r", len(model), store_prefix)


def before_train_step(
    args: Any,
    rollout_id: int,
    step_id: int,
    model: Sequence[Any],
    optimizer: Any,
    opt_param_scheduler: Any,
) -> None:
    """Before the step's gradients: a hyper-parameter may be changed here."""
    logger.info("rollout %d, optimizer step %d", rollout_id, step_id)
