"""Rules about runs that are not the whole pipeline, or more than it: debugging either half, a
teacher beside it."""

from __future__ import annotations

from collections.abc import Iterator

from configs.rules.inputs import check_weights
from configs.schema import Config


def distillation(config: Config) -> Iterator[str]:
    d = config.distill
    given = {"--opd-teacher-load": d.opd_teacher_load, "--opd-teacher-url": d.opd_teacher_url}
    named = [f"{flag} {value}" for flag, value in given.items() if value]
    if not d.use_opd:
        if named:
            yield f"{named[0]} without --use-opd: no teacher is asked. Add --use-opd, or drop it"
        return
    if len(named) != 1:
        yield (
            f"--use-opd with {' and '.join(named) or 'no teacher'}: expected one of"
            " --opd-teacher-load FOLDER, --opd-teacher-url URL"
        )
    if d.opd_teacher_url and not d.opd_teacher_url.startswith(("http://", "https://")):
        yield (
            f"--opd-teacher-url {d.opd_teacher_url}: expected http://HOST:PORT of an SGLang server"
        )
    if d.opd_teacher_load and not config.run.mock:
        yield from check_weights(d.opd_teacher_load, "--opd-teacher-load", hf=True)
    if config.algorithm.advantage_estimator == "ppo":
        yield (
            "--use-opd with --advantage-estimator ppo: the critic would be taught returns without"
            " the teacher. Use grpo, say"
        )
    if config.algorithm.custom_convert_samples_to_train_data_path:
        yield (
            "--use-opd with --custom-convert-samples-to-train-data-path: its rows cannot be matched"
            " with the teacher's answers. Drop one"
        )


def debugging(config: Config) -> Iterator[str]:
    run = config.run
    if run.debug_rollout_only and (run.debug_train_only or run.trains_on_kept):
        yield (
            "--debug-rollout-only with --debug-train-only (or --load-debug-rollout-data): nothing"
            " would be left to run. Drop one"
        )
    if run.debug_train_only and not (run.trains_on_kept or config.answers_are_given):
        yield (
            "--debug-train-only without --load-debug-rollout-data: there is nothing to train on."
            " Name files with {rollout_id}, or a run; or train on given answers (--loss-type"
            " sft_loss)"
        )
    if run.debug_rollout_only and run.load:
        yield (
            f"--debug-rollout-only with --load {run.load}: without a learner there is nothing to"
            " resume. To generate with a run's weights: --hf-checkpoint"
            f" {run.load}/checkpoints/latest/hf"
        )
    saved, loaded = run.save_debug_rollout_data, run.load_debug_rollout_data
    for flag, path in (("--save-debug-rollout-data", saved), ("--load-debug-rollout-data", loaded)):
        if (
            path is not None
            and "{rollout_id}" not in path
            and not (flag.startswith("--load") and _is_run(path))
        ):
            yield f"{flag} {path}: expected a file name with {{rollout_id}} in it" + (
                ", or a run directory that has a buffer" if flag.startswith("--load") else ""
            )


def _is_run(path: str) -> bool:
    from pathlib import Path

    return (Path(path) / "buffer").is_dir()
