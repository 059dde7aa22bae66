"""Labels, judged at load by the use that will be made of them."""

from __future__ import annotations

from collections.abc import Callable

from configs.rules.judge import why_no_judge
from configs.rules.rewards import why_missing, why_unchecked
from configs.schema.reward import COMPARING, RM_TYPES, RewardConfig
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.labels import accepted_answers, whole_number
from pipeline.core.supervision import Supervision
from pipeline.core.unit_tests import unit_tests
from stages.source.rows import Row

Judge = Callable[[Row], None]
FORMULAS = ("math", "boxed_math")  # scorers whose label must be a formula


def scored_by(reward: RewardConfig) -> Judge:
    """A judge that raises DataError for a row that its built-in scorer could never score. A user's
    function may take any label."""

    def judge(row: Row) -> None:
        scorer = row.metadata.get("rm_type") or reward.rm_type
        if reward.custom_rm_path or scorer is None:
            return
        if scorer not in RM_TYPES:
            raise DataError(
                f"{row.where}: its metadata says rm_type {scorer!r}; expected one of"
                f" {', '.join(RM_TYPES)}"
            )
        if scorer == "remote_rm" and reward.rm_url is None:
            raise DataError(
                f"{row.where}: its metadata says rm_type remote_rm; set --rm-url, the server that"
                " scores"
            )
        if scorer == "judge" and (missing := why_no_judge(reward)):
            raise DataError(f"{row.where}: its metadata says rm_type judge: {missing}")
        if missing := why_missing(scorer):
            raise DataError(f"{row.where}: rm_type {scorer}: {missing}")
        if scorer == "ifeval" and (missing := _unchecked(row)):
            raise DataError(
                f"{row.where}: rm_type ifeval: {missing} (--skip-bad-rows skips and counts such"
                " rows)"
            )
        if scorer == "reasoning_gym" and "reasoning_gym" not in row.metadata:
            raise DataError(
                f"{row.where}: rm_type reasoning_gym scores prompts of reasoning_gym:TASK only"
            )
        if scorer == "code":
            _judge_tests(row)
        if scorer in COMPARING:
            _judge_answers(row, f"rm_type {scorer} compares with it", formula=scorer in FORMULAS)
        if scorer == "dapo":
            _judge_numbers(row)

    return judge


def _judge_tests(row: Row) -> None:
    try:
        unit_tests(row.label, row.metadata)
    except ValueError as error:
        raise DataError(
            f"{row.where}: {error} (--skip-bad-rows skips and counts such rows)"
        ) from error


def _unchecked(row: Row) -> str | None:
    """Why its instructions cannot be checked."""
    instructions = row.metadata.get("instruction_id_list")
    if not instructions:
        return "its metadata has no instruction_id_list"
    return why_unchecked(instructions)


def _judge_numbers(row: Row) -> None:
    for answer in accepted_answers(row.label):
        try:
            whole_number(answer)
        except ValueError as error:
            raise DataError(
                f"{row.where}: the label {answer!r:.80} is no whole number, and rm_type dapo knows"
                " no other; use math (--skip-bad-rows skips and counts such rows)"
            ) from error


def answered(row: Row) -> None:
    """Raises DataError for a row without a label that can be taught."""
    _judge_answers(row, "the warm-up teaches it", formula=False)


def taught_by(supervision: Supervision, *, rendered: bool) -> Judge:
    """A judge that raises DataError for a row from which nothing can be taught. `rendered`: prompts
    become text by the chat template, ahead of their answers."""

    def judge(row: Row) -> None:
        if rendered and isinstance(row.prompt, list) and row.label is None:
            raise ConfigError(
                "--apply-chat-template with whole chats to train on (--loss-type sft_loss, no"
                " --label-key): what follows the last message would be asked for. Drop it: they are"
                " rendered as --loss-mask-type says"
            )
        prompt = supervision.asked(row.prompt, row.tools) if rendered else row.prompt
        if row.images:
            raise DataError(f"{row.where}: images: --loss-type sft_loss trains on text only")
        try:
            supervision.check(prompt, row.label, row.tools)
        except DataError as error:
            raise DataError(
                f"{row.where}: {error} (--skip-bad-rows skips and counts such rows)"
            ) from error

    return judge


def _judge_answers(row: Row, why: str, *, formula: bool) -> None:
    try:
        answers = accepted_answers(row.label)
    except ValueError as error:
        raise DataError(
            f"{row.where}: {error}; {why} (--skip-bad-rows skips and counts such rows)"
        ) from error
    for answer in answers if formula else ():
        if not any(c.isalnum() for c in answer):
            raise DataError(
                f"{row.where}: the label {answer!r} is no formula; is it text? Then use --rm-type"
                " exact_match"
            )
