"""Where prompts come from: JSONL, Parquet, reasoning-gym, a user's own class."""

from __future__ import annotations

from configs.schema import DataConfig
from pipeline.core.errors import ConfigError
from pipeline.core.protocols import Tokenizer
from stages.source.bases import DataSource, RolloutDataSource
from stages.source.file_rows import FileRows
from stages.source.labels import Judge, answered, scored_by, taught_by
from stages.source.render import Renderer
from stages.source.rows import Row, Rows
from stages.source.sft import sft_pairs
from stages.source.source import LIMIT_FLAG, PromptSource
from stages.source.user_source import UserSource

__all__ = [
    "LIMIT_FLAG",
    "DataSource",
    "Judge",
    "PromptSource",
    "RolloutDataSource",
    "Row",
    "UserSource",
    "answered",
    "build_source",
    "scored_by",
    "sft_pairs",
    "taught_by",
]


def build_source(
    spec: str | None,
    config: DataConfig,
    n_samples_per_prompt: int = 1,
    max_prompt_len: int | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    seed: int | None = None,
    judge: Judge | None = None,
    limit_flag: str = LIMIT_FLAG,
    held_out: bool = False,
) -> PromptSource:
    """The source that `spec` names: file.jsonl, file.parquet, path@[a:b],
    reasoning_gym:TASK?param=value&..., or verifiers:NAME?argument=value&... (with `held_out` its
    rows for evaluation).

    `seed` (by default --rollout-seed) is for the shuffle and for procedural tasks. With `tokenizer`
    None prompts stay unrendered, without token ids. Every row of a file is judged here: its form,
    its prompt by the chat template, its label by `judge`. Raises DataError, or ConfigError for
    flags that don't fit."""
    if not spec:
        raise ConfigError(
            "no prompts: set --prompt-data to a .jsonl or .parquet file, or to reasoning_gym:TASK"
        )
    seed = config.rollout_seed if seed is None else seed
    render = Renderer(config, tokenizer)
    return PromptSource(
        _rows(spec, config, seed, render, judge, held_out),
        render,
        n_samples_per_prompt=n_samples_per_prompt,
        max_prompt_len=max_prompt_len,
        shuffle=config.rollout_shuffle,
        seed=seed,
        limit_flag=limit_flag,
    )


def _rows(
    spec: str, config: DataConfig, seed: int, render: Renderer, judge: Judge | None, held_out: bool
) -> Rows:
    if spec.startswith("reasoning_gym:"):
        from stages.source.tasks import TaskRows  # reasoning-gym takes a second or two to import

        return TaskRows(spec, seed=seed)
    if spec.startswith("verifiers:"):
        from stages.source.verifiers_rows import VerifiersRows  # likewise

        return VerifiersRows(spec, held_out=held_out)

    def judge_row(row: Row) -> None:
        render.text(row)
        if judge is not None:
            judge(row)

    return FileRows(spec, config, judge_row)
