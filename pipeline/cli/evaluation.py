"""`eval`: evaluates a checkpoint alone, on engines, without a learner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.command_line.loader import parse_config
from configs.command_line.preset_files import GivenFlag, split_words
from configs.rules.validate import EVALUATION_RULES, validate
from configs.schema import Config, DistillConfig, WarmupConfig
from pipeline.cli.chat import find_model
from pipeline.core.errors import ConfigError, SlipstreamError
from pipeline.core.find_run import find_run, is_checkpoint
from pipeline.run.snapshot import find_snapshot, read_state
from pipeline.wiring.evaluation_run import Evaluated, build_evaluation
from pipeline.wiring.foreign_flags import FAMILIES

HELP = """\
usage: {prog} --load CHECKPOINT [--eval-prompt-data NAME PATH ...] [--flag value ...]

Evaluates a checkpoint on engines of its own, without a learner: the data sets of
--eval-prompt-data, or of --eval-config FILE, each sample generated and scored as in a run's own
evaluations. Prints a table, with 95% confidence intervals, and writes the same records to
RUNS_DIR/NAME/metrics.jsonl (--name, by default eval).

  --load CHECKPOINT  a run directory (its latest checkpoint), a checkpoint, or what
                     --hf-checkpoint takes. A run's own flags hold, unless said otherwise
  --[flag]           any flag of `train`: --n-samples-per-eval-prompt, --eval-temperature,
                     --rm-type, --label-key, --rollout-num-gpus, --sglang-..., ...
"""


def run_eval(words: Sequence[str], prog: str) -> int:
    """The exit code: 0, also where some samples failed; 1 where a data set could not be
    measured; as for training else."""
    try:
        given = split_words(words)
        if any(flag.name == "help" for flag in given):
            print(HELP.format(prog=prog), end="")
            return 0
        config, weights = evaluation_of(given)
    except SlipstreamError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    from pipeline.run.evaluation_run import EvaluationRun
    from pipeline.run.outcome import run_to_end

    print(f"slipstream: evaluating {weights.model} ...", flush=True)
    made: list[EvaluationRun] = []

    def make() -> EvaluationRun:
        made.append(build_evaluation(config, weights))
        return made[0]

    code = run_to_end(EvaluationRun.evaluate, make)
    return code or int(any(result.error for run in made for result in run.results))


def evaluation_of(given: Sequence[GivenFlag]) -> tuple[Config, Evaluated]:
    """The configuration of half a pipeline, and the weights.

    Raises ConfigError, CheckpointError."""
    loads = [flag.values for flag in given if flag.name == "load"]
    if len(loads) != 1 or len(loads[0]) != 1:
        raise ConfigError("--load CHECKPOINT: expected one, the weights to evaluate")
    load, rest = loads[0][0], [flag for flag in given if flag.name != "load"]
    if set_here := next((f for f in rest if f.name in ("hf-checkpoint", "eval-interval")), None):
        raise ConfigError(f"{set_here}: `eval` says that itself; drop it")
    path = Path(load)  # or a name on the Hub, or tiny:...: the rules tell
    # then the loader puts the run's own flags ahead
    restores = find_run(path) is not None or is_checkpoint(path)
    config, _ = parse_config(_words(given if restores else rest), FAMILIES)
    weights = _weights(path, mock=config.run.mock) if path.is_dir() else Evaluated(model=load)
    _check_asked(config)
    config = _half(config, weights.model)
    validate(config, EVALUATION_RULES)
    for family in FAMILIES:
        for problem in family.problems(config):
            raise ConfigError(problem)
    return config, weights


def _words(flags: Sequence[GivenFlag]) -> list[str]:
    return [word for flag in flags for word in (f"--{flag.name}", *flag.values)]


def _weights(path: Path, *, mock: bool) -> Evaluated:
    """Of a folder; a --mock run has no model in its checkpoints."""
    folder = find_snapshot(str(path)) if mock else find_model(path)[0]
    snapshot = folder if mock else folder.parent
    if not (snapshot / "state.json").is_file():  # a model of somebody else's
        return Evaluated(model=str(folder))
    clock = read_state(snapshot)["clock"]
    return Evaluated(
        model=str(folder),
        policy_version=clock["pushes"] + clock.get("version_offset", 0),
        num_trained=clock["trained"],
    )


def _check_asked(config: Config) -> None:
    asked = config.eval
    if not (asked.eval_prompt_data or asked.eval_config or asked.eval_function_path):
        raise ConfigError(
            "nothing to evaluate on: add --eval-prompt-data NAME PATH, or --eval-config FILE"
        )
    if config.cluster.rollout_external_engine_addrs:
        raise ConfigError(
            "--rollout-external-engine-addrs: engines that run already have weights of their own;"
            " `eval` starts engines with the checkpoint's. Drop it (--rollout-external-engine-addrs"
            " '' takes back what the run said)"
        )


def _half(config: Config, model: str) -> Config:
    """Nothing is trained, taught, resumed or saved, and nobody but the evaluator asks engines."""
    return replace(
        config,
        run=replace(
            config.run,
            name=config.run.name or "eval",
            load=None,
            save=None,
            num_rollout=1,
            num_epoch=None,
            debug_rollout_only=True,
            debug_train_only=False,
            load_debug_rollout_data=None,
            save_debug_rollout_data=None,
        ),
        model=replace(config.model, hf_checkpoint=model, initial_megatron_checkpoint=None),
        algorithm=replace(config.algorithm, use_rollout_routing_replay=False),
        cluster=replace(config.cluster, colocate=False, num_rollout_workers=0),
        eval=replace(config.eval, eval_interval=1),
        distill=DistillConfig(),
        warmup=WarmupConfig(),
    )
