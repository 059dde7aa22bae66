"""The run and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The run and what it leaves behind."""

    # names the run; by default the preset's name, numbered when it is taken
    name: str | None = None
    runs_dir: str = "runs"  # the folder in which run directories are made
    num_rollout: int = 100  # how many rollouts (of --rollout-batch-size groups each) are trained on
    # how many times the prompts are gone through, instead of --num-rollout, which goes before it
    num_epoch: int | None = None
    save: str | None = None  # the checkpoint folder; by default RUN_DIR/checkpoints
    # goes on from this run directory or checkpoint; where it is the folder of --save, and empty, a
    # run begins
    load: str | None = None
    # saves after every so many rollouts; the end of a run always saves
    save_interval: int | None = None
    seed: int = 1234  # seeds initialisation and everything that has no seed of its own
    # gives your own functions settings of their own: a YAML mapping, whose values are attributes of
    # args; a name that is a flag means that flag
    custom_config_path: str | None = None
    # how many samples of each rollout keep their texts in samples.jsonl, for the report and the
    # trackers
    log_samples: int = 4
    # shown every rollout that was trained on: f(rollout_id, args, samples, rollout_extra_metrics,
    # rollout_time)
    custom_rollout_log_function_path: str | None = None
    # shown the samples of every evaluation: f(rollout_id, args, data, extra_metrics)
    custom_eval_rollout_log_function_path: str | None = None
    # simulates engines and learner: the whole pipeline runs in seconds, without a model
    mock: bool = False
    # runs without a learner: rollout after rollout is generated with the first weights
    debug_rollout_only: bool = False
    # runs without engines: the learner trains on --load-debug-rollout-data
    debug_train_only: bool = False
    # writes every rollout that is taken to a file with {rollout_id} in its name
    save_debug_rollout_data: str | None = None
    # trains on such files, or on a run directory that kept its trajectories (--keep-trajectories);
    # implies --debug-train-only
    load_debug_rollout_data: str | None = None
    # sets how much RUN_DIR/run.log and the console say
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    # the format of checkpoints; `python -m pipeline convert` reads others
    ckpt_format: Literal["torch_dist"] = "torch_dist"
    # writes checkpoints while training goes on, from one more copy of the learner's state in host
    # memory
    async_save: bool = False
    save_optim: bool = True  # puts optimizer and schedule into checkpoints
    # restores optimizer and schedule with --load; without it both begin anew
    load_optim: bool = True
    # the Hugging Face folder of every save; {checkpoint} and {rollout_id} are filled in; `none`
    # writes no folder
    save_hf: str | None = "{checkpoint}/hf"

    @property
    def trains_on_kept(self) -> bool:
        """No engines: what is trained on comes from files."""
        return self.load_debug_rollout_data is not None
