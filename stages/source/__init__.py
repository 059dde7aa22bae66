"""Prompts: JSONL, Parquet or a reasoning-gym task; shuffled, epoch-counted, resumable."""

from stages.source.prompts import PromptSource, build_source, sft_pairs

__all__ = ["PromptSource", "build_source", "sft_pairs"]
