"""What processes on GPUs are told by their environment."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.gpu_environment import alike, forwarded, of_rank


def test_what_the_shell_says_of_nccl_is_told_everywhere_and_nothing_else() -> None:
    shell = {"NCCL_IB_HCA": "mlx5", "NVTE_DEBUG": "1", "TORCH_NCCL_ENABLE_MONITORING": "0"}
    assert forwarded({**shell, "HOME": "/root", "GLOO_SOCKET_IFNAME": "lo"}) == shell


@pytest.mark.parametrize(
    ("shell", "sglang", "said"),
    [
        ({}, {}, ("0", "0")),
        ({"NCCL_CUMEM_ENABLE": "1"}, {}, ("1", "0")),
        ({}, {"enable_nccl_nvls": True}, ("0", "1")),
        ({"NCCL_NVLS_ENABLE": "0"}, {"enable_symm_mem": True}, ("1", "1")),
        ({"NCCL_NVLS_ENABLE": "2"}, {"enable_symm_mem": False}, ("0", "2")),
    ],
)
def test_learner_and_engines_are_told_what_such_engines_would_set(
    shell: dict[str, str], sglang: dict[str, Any], said: tuple[str, str]
) -> None:
    """The right column is what SGLang 0.5.21 leaves in the environment (_set_envs_and_config)."""
    assert tuple(alike(shell, sglang).values()) == said


def test_a_ranks_own_give_way_to_the_shell() -> None:
    by_itself = of_rank({}, megatron={}, cpus=192, devices=8)
    assert by_itself == {"OMP_NUM_THREADS": "8", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    shell = {"OMP_NUM_THREADS": "3", "CUDA_DEVICE_MAX_CONNECTIONS": "8", "HOME": "/root"}
    told = of_rank(shell, megatron={}, cpus=192, devices=8)
    assert told == {"OMP_NUM_THREADS": "3", "CUDA_DEVICE_MAX_CONNECTIONS": "8"}


@pytest.mark.parametrize(
    ("cpus", "devices", "threads"), [(16, 8, "2"), (4, 8, "1"), (16, 0, "8"), (32, 8, "4")]
)
def test_threads_are_a_devices_share_of_the_cores(cpus: int, devices: int, threads: str) -> None:
    assert of_rank({}, megatron={}, cpus=cpus, devices=devices)["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize("megatron", [None, {"overlap_moe_expert_parallel_comm": True}])
def test_one_connection_is_for_megatrons_tensor_parallelism(megatron: Any) -> None:
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in of_rank({}, megatron=megatron, cpus=8, devices=1)
