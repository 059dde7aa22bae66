"""--rollout-data-postprocess-path: the user's last word on loss masks and advantages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from configs.hooks import HOOKS, load_hook
from configs.schema import AlgorithmConfig
from pipeline.core.errors import DataError
from pipeline.core.types import TrainSample
from stages.advantage.shares import share_trajectories
from stages.advantage.user_hooks import rollout_data_of

HOOK = HOOKS["rollout_data_postprocess_path"]
Postprocess = Callable[[int, list[TrainSample]], list[TrainSample]]


def load_postprocess(config: AlgorithmConfig, args: Any) -> Postprocess | None:
    """None without the flag. Raises ConfigError when the function cannot be loaded."""
    spec = config.rollout_data_postprocess_path
    if spec is None:
        return None
    function = load_hook(HOOK.field, spec)

    def postprocess(rollout_id: int, rows: list[TrainSample]) -> list[TrainSample]:
        data = rollout_data_of(rows)
        data["advantages"] = [row.advantages.copy() for row in rows]
        data["loss_masks"] = [row.loss_mask.copy() for row in rows]
        function(args, rollout_id, data)
        return share_trajectories([_row(row, data, i, len(rows)) for i, row in enumerate(rows)])

    return postprocess


def _row(row: TrainSample, data: dict[str, Any], i: int, num_rows: int) -> TrainSample:
    mask = _read(data, "loss_masks", i, num_rows, row.response_length)
    if not np.isin(mask, (0, 1)).all():
        raise DataError(f"{HOOK.flag}: loss_masks[{i}] holds other numbers than 0 and 1")
    if (mask > row.loss_mask).any() and np.isnan(row.rollout_log_probs[mask > row.loss_mask]).any():
        raise DataError(f"{HOOK.flag}: loss_masks[{i}] trains tokens without rollout log-probs")
    advantages = _read(data, "advantages", i, num_rows, row.response_length)
    return dataclasses.replace(
        row, loss_mask=mask.astype(np.uint8), advantages=advantages.astype(np.float32)
    )


def _read(
    data: dict[str, Any], name: str, i: int, num_rows: int, length: int
) -> np.ndarray[Any, Any]:
    given = data.get(name)
    lists: Sequence[Any] = () if given is None else given
    found = np.asarray(lists[i], dtype=np.float64) if len(lists) == num_rows else None
    if found is None or found.shape != (length,) or not np.isfinite(found).all():
        shape = f"{len(lists)} entries" if found is None else f"entry {i} of shape {found.shape}"
        raise DataError(
            f"{HOOK.flag}: the function left {name} with {shape}; expected {num_rows} of them, each"
            f" a finite number for every response token (here {length})"
        )
    return found
