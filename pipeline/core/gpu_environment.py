"""Environment variables of processes on GPUs: what both sides of a push must have alike, what a
learner's rank has by itself, and what of the driver's shell other nodes are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of the driver's shell, told to every process of the run: nodes of a cluster that is joined have
# the environment of their `ray start`. (gloo is told each node's own interface.)
_FORWARDED = ("NCCL_", "TORCH_NCCL_", "NVTE_", "UCX_")
# What NCCL's ranks of one group must agree on. SGLang sets both, and takes "0" where nobody says
# otherwise (sglang/srt/entrypoints/engine.py, _set_envs_and_config); slime sets the first for its
# ranks "because sglang will always set NCCL_CUMEM_ENABLE to 0" (slime/ray/actor_group.py).
ALIKE = ("NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE")
MOST_THREADS = 8  # OpenMP threads of a rank: for packing, loading and copies


def forwarded(shell: Mapping[str, str]) -> dict[str, str]:
    """What of the driver's `shell` every process of the run gets."""
    return {name: value for name, value in shell.items() if name.startswith(_FORWARDED)}


def alike(shell: Mapping[str, str], sglang: Mapping[str, Any]) -> dict[str, str]:
    """What learner ranks and engines get, that a group of both can form: what engines of these
    flags (ServerArgs field -> value) would set themselves."""
    symmetric = bool(sglang.get("enable_symm_mem"))
    on = {
        "NCCL_CUMEM_ENABLE": symmetric,
        "NCCL_NVLS_ENABLE": symmetric or bool(sglang.get("enable_nccl_nvls")),
    }
    return {name: "1" if on[name] else shell.get(name, "0") for name in ALIKE}


def of_rank(
    shell: Mapping[str, str], *, megatron: Mapping[str, Any] | None, cpus: int, devices: int
) -> dict[str, str]:
    """What a learner's rank on a GPU gets where the shell says nothing. `megatron`: its flags; None
    for another backend. `cpus`, `devices`: of a node, 0 where it is not known.

    With one connection kernels start in the order in which they were launched, which the overlap of
    Megatron's tensor and context parallelism counts on (Megatron-LM asserts it up to Hopper); the
    overlap of expert parallelism wants several, as does FSDP. Ray gives its workers one thread a
    CPU that they asked for, which is one."""
    out = {"OMP_NUM_THREADS": str(max(1, min(MOST_THREADS, cpus // max(1, devices))))}
    if megatron is not None and not megatron.get("overlap_moe_expert_parallel_comm"):
        out["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return {name: shell.get(name, value) for name, value in out.items()}
