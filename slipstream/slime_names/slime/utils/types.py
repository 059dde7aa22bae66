"""Samples."""

from pipeline.core.slime_names import refuse
from pipeline.core.types import Sample

__all__ = ["Sample"]
__getattr__ = refuse("slime.utils.types")
