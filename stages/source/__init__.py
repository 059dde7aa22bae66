"""Prompts: JSONL, Parquet or a reasoning-gym task; shuffled, epoch-counted, resumable."""

from stages.source.prompts import PromptSource, build_source, sft_pairs
from stages.source.rows import SUMS

__all__ = ["SUMS", "PromptSource", "build_source", "sft_pairs"]
