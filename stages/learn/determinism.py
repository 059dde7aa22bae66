"""--deterministic-mode on the learner: the same step gives the same bits.

Megatron's flag chooses Megatron's kernels; this module chooses torch's."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

# Read by the libraries when they are first used, hence set ahead of that; who has set them knows
# better. NVIDIA's documentation of cuBLAS ("Results reproducibility") and NCCL; TransformerEngine's
# and Megatron-LM's of --deterministic-mode.
ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's generators, for user functions that bring none of their
    own.

    Model parallelism has generators of its own beside these."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def use_deterministic_kernels(on: bool) -> None:
    """With `on` an operator without a deterministic kernel raises, instead of being different every
    time. This holds for the whole process."""
    if on:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(on)
    # what is read before it is written is a bug, not noise to be hidden
    torch.utils.deterministic.fill_uninitialized_memory = False
