"""Labels, judged at load by what will be made of them."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import RewardConfig
from pipeline.core.errors import DataError
from pipeline.core.labels import accepted_answers
from stages.source.rows import Row

Judge = Callable[[Row], None]
COMPARED = ("math", "exact_match")  # scorers that compare with the label
KNOWN = (*COMPARED, "reasoning_gym", "random")


def scored_by(reward: RewardConfig) -> Judge:
    """Raises DataError for a row that its built-in scorer could never score. What a user's function
    makes of a label is its own affair."""

    def judge(row: Row) -> None:
        scorer = row.metadata.get("rm_type") or reward.rm_type
        if reward.custom_rm_path or scorer is None:
            return
        if scorer not in KNOWN:
            raise DataError(
                f"{row.where}: its metadata says rm_type {scorer!r}; expected one of"
                f" {', '.join(KNOWN)}"
            )
        if scorer == "reasoning_gym" and "reasoning_gym" not in row.metadata:
            raise DataError(
                f"{row.where}: rm_type reasoning_gym scores prompts of reasoning_gym:TASK only"
            )
        if scorer in COMPARED:
            _judge_answers(row, f"rm_type {scorer} compares with it", formula=scorer == "math")

    return judge


def answered(row: Row) -> None:
    """Raises DataError for a row whose label cannot be taught."""
    _judge_answers(row, "the warm-up teaches it", formula=False)


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
