"""Where prompts come from: JSONL, Parquet, reasoning-gym, a user's own class."""

from __future__ import annotations

from configs.schema import DataConfig
from pipeline.core.errors import ConfigError
from pipeline.core.protocols import Tokenizer
from stages.source.render import build_renderer
from stages.source.rows import FileRows, Rows
from stages.source.sft import sft_pairs
from stages.source.source import PromptSource
from stages.source.user_source import UserSource

__all__ = ["PromptSource", "UserSource", "build_source", "sft_pairs"]


def build_source(
    spec: str | None,
    config: DataConfig,
    n_samples_per_prompt: int = 1,
    max_prompt_len: int | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    seed: int | None = None,
) -> PromptSource:
    """The source that `spec` names: file.jsonl, file.parquet, path@[a:b], or
    reasoning_gym:TASK?param=value&...

    `seed` (default --rollout-seed) is the shuffle's and the procedural tasks'; `tokenizer` None
    (--mock) leaves prompts unrendered, without token ids. Every row is checked here. Raises
    DataError, or ConfigError for flags that don't fit."""
    if not spec:
        raise ConfigError(
            "no prompts: set --prompt-data to a .jsonl or .parquet file, or to reasoning_gym:TASK"
        )
    seed = config.rollout_seed if seed is None else seed
    return PromptSource(
        _rows(spec, config, seed),
        build_renderer(config, tokenizer),
        n_samples_per_prompt=n_samples_per_prompt,
        max_prompt_len=max_prompt_len,
        shuffle=config.rollout_shuffle,
        seed=seed,
    )


def _rows(spec: str, config: DataConfig, seed: int) -> Rows:
    if spec.startswith("reasoning_gym:"):
        from stages.source.tasks import TaskRows  # reasoning-gym takes a second or two to import

        return TaskRows(spec, seed=seed)
    return FileRows(spec, config)
