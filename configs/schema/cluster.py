"""Which devices learner and engines take, and how weights go from one to the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Who runs where. On a machine without GPUs the same numbers count processes on CPU cores."""

    actor_num_nodes: int = 1  # how many nodes the learner takes
    actor_num_gpus_per_node: int = 1  # how many learner ranks a node has
    # how many devices all engines take together; with --colocate by default all of the learner's
    rollout_num_gpus: int = 1
    # how many devices an engine has: its tensor-parallel size (x --sglang-pp-size)
    rollout_num_gpus_per_engine: int = 1
    # the addresses (host:port) of SGLang servers that somebody else runs: none is started then, and
    # --rollout-num-gpus does not count
    rollout_external_engine_addrs: tuple[str, ...] = ()
    # how many devices of a node learner and engines may take; by default all that Ray counts there
    num_gpus_per_node: int | None = None
    # lets learner and engines share devices; only with --async-buffer-size 0
    colocate: bool = False
    # generates, scores and filters in so many processes of their own (Ray actors), where your
    # functions run too; 0: in the driver
    num_rollout_workers: int = 0
    # how often all rollout workers together may be started again
    rollout_worker_restarts: int = 3
    # restores a learner that dies, on free devices and from the last checkpoint; engines go on
    use_fault_tolerance: bool = False
    learner_restarts: int = 3  # how often it may be restored; only with --use-fault-tolerance
    sglang_server_concurrency: int = 512  # how many requests may be in flight at one engine
    # where the router listens: SGLang's /generate in front of all engines, for your own functions
    sglang_router_ip: str = "127.0.0.1"
    sglang_router_port: int | None = None  # the router's port; by default a free one
    # sends requests to the engines through SGLang's router (the package sglang-router), which then
    # chooses the engine
    use_sglang_router: bool = False
    # how SGLang's router chooses an engine; only with --use-sglang-router
    router_policy: Literal[
        "consistent_hashing", "cache_aware", "round_robin", "random", "manual", "power_of_two"
    ] = "consistent_hashing"
    # how long an engine may take to become ready; by default 300 on a CPU and 1800 on a GPU, where
    # the first start compiles kernels
    engine_start_timeout_seconds: float | None = None
    engine_restarts: int = 3  # how often one engine may be started again
    cpu_threads_per_engine: int = 1  # how many threads an engine has; only on a CPU
    cpu_threads_per_actor: int = 1  # how many threads a learner rank has; only on a CPU
    cpu_affinity: bool = False  # pins learners and engines to cores of their own; only on a CPU
    # chooses how weights reach the engines; delta sends only what has changed; with --colocate by
    # default tensor (engines are told where in memory they are), over several nodes disk
    weight_transport: Literal["distributed", "tensor", "disk", "delta"] = "distributed"
    # where a node keeps its copy of the weights, which engines load from with --weight-transport
    # delta; by default in the temporary folder
    update_weight_local_checkpoint_dir: str | None = None
    # how many bytes make a bucket of the transports distributed and tensor
    update_weight_buffer_size: int = 512 << 20
    # how many bytes of weights a learner rank may copy for a push, to train on meanwhile (on GPUs
    # into page-locked host memory); by default all that it sends. For more it waits
    push_staging_bytes: int | None = None
    # compares the engines' weights by checksum after every push, and what the first one brings with
    # the checkpoint that they had loaded
    check_weight_update_equal: bool = False
    # the share of the engines that a push pauses at the same time; 1 is all of them
    push_wave_fraction: float = 0.5
    # keeps the attention cache of running requests at a push, computes it again, or lets them end
    # first
    weight_update_mode: Literal["in_place", "retract", "drain"] = "in_place"
    # environment variables of the learner's ranks, as JSON: {"NAME": "VALUE", ...}; they go over
    # the shell's
    train_env_vars: str | None = None
    # joins an existing Ray cluster; by default the one that RAY_ADDRESS names, else one is started
    # on this machine
    ray_address: str | None = None
    offload: bool = False  # sets --offload-train and --offload-rollout
    # moves the learner's weights, gradients and optimizer off the device between steps; by default
    # with --colocate on a GPU
    offload_train: bool | None = None
    # moves the engines' weights and attention cache off the device while the learner trains; by
    # default with --colocate on a GPU
    offload_rollout: bool | None = None

    @property
    def train_environment(self) -> dict[str, str]:
        return {name: str(value) for name, value in json.loads(self.train_env_vars or "{}").items()}
