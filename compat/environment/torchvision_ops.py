"""Declares the two torchvision operators that `import torchvision` looks up, where its compiled
extension cannot load."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from typing import Any

_keep: list[Any] = []  # a torch.library.Library takes its definitions with it when it is collected


def declare_operators() -> None:
    """Does nothing when the extension loads, or when the operators are there already."""
    import torch

    if _extension_loads() or hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _keep.append(library)


def _extension_loads() -> bool:
    import torch

    spec = importlib.machinery.PathFinder.find_spec("torchvision")
    folders = (spec.submodule_search_locations or []) if spec else []
    for extension in (path for folder in folders for path in Path(folder).glob("_C*.so")):
        try:
            torch.ops.load_library(str(extension))
            return True
        except OSError:  # what torchvision itself catches: a missing CUDA library
            continue
    return False
