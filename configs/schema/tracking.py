"""Who shows a run's numbers beside its own files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from configs.schema.marks import SECRET


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Weights & Biases and TensorBoard."""

    use_wandb: bool = False  # logs to Weights & Biases too
    wandb_project: str = "slipstream"  # names the Weights & Biases project
    wandb_group: str | None = None  # names the Weights & Biases group
    wandb_team: str | None = None  # the team or user that the project belongs to
    # whether anything is sent; by default what WANDB_MODE says
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    # the key to log in with, not kept in config.yaml; by default WANDB_API_KEY, or `wandb login`'s
    wandb_key: str | None = field(default=None, repr=False, metadata=SECRET)
    wandb_host: str | None = None  # a server of your own, https://HOST
    wandb_dir: str | None = None  # where Weights & Biases keeps its files; by default RUN_DIR
    wandb_run_id: str | None = None  # goes on in this run of Weights & Biases
    use_tensorboard: bool = False  # writes TensorBoard events too, into RUN_DIR/tensorboard
    # writes them into DIR/RUN_NAME instead, where TensorBoard shows many runs together
    tensorboard_dir: str | None = None
    # a folder in between; without --tensorboard-dir in tensorboard_log, as in slime
    tb_project_name: str | None = None
    tb_experiment_name: str | None = None  # instead of RUN_NAME
