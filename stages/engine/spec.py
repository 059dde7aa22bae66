"""What one engine is told: from the configuration to SGLang's command line and environment.

Pure, but for reading config.json."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compat import FORKS, ROOT, engine_environment
from configs.schema import RolloutConfig
from pipeline.core.errors import CheckpointError, ConfigError
from stages.engine.server_args import server_arg, to_command_line

# bound of one engine's KV pool on a CPU: SGLang's own guess there is most of the memory
KV_BYTES = 1 << 30
MAX_RUNNING = 256  # requests decoded at once on a CPU
# What SGLang would compile into the temporary folder, which an engine has to itself and leaves at
# its end: kept beside it, every start but the first finds its kernels. (Triton, FlashInfer and
# DeepGEMM have theirs under the home folder.) Variable -> folder, as the libraries name it.
COMPILED = {
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash_attention_cute_dsl_cache",
}
# With it engines report log-probs of temperature 1 (sglang/srt/layers/sampler.py), which are not
# those of what they sample from.
UNTEMPERED = "SGLANG_RETURN_ORIGINAL_LOGPROB"
CONTEXT_FALLBACK = 2048  # tokens a request may need, where neither flags nor config.json say


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The settings of one engine. Ports and the weight version are given at its start."""

    index: int
    model_path: Path
    host: str = "127.0.0.1"  # the address that it binds to
    # of an engine over several nodes: how many, which of them this is, and where they meet
    nnodes: int = 1
    node_rank: int = 0
    dist_init_addr: str | None = None
    log_path: Path
    device: str  # "cpu" | "cuda"
    dtype: str
    tp_size: int = 1
    cuda_devices: tuple[str, ...] = ()  # values for CUDA_VISIBLE_DEVICES; empty: leave it as it is
    threads: int = 1  # of each of its processes, on CPU
    cpus: tuple[int, ...] = ()  # cores it is pinned to; empty: all
    concurrency: int = 512  # requests in flight at most
    tokens_per_request: int = CONTEXT_FALLBACK  # KV a request may need
    seed: int = 1234
    returns_experts: bool = False  # writes down where every token was routed, for requests that ask
    # --sglang-* values: they win over everything here
    user: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seeded(self) -> bool:
        """Does the engine follow the `sampling_seed` of a request?"""
        return bool(self._user_args().get("enable_deterministic_inference"))

    @property
    def _has_replicas(self) -> bool:
        """SGLang's own data parallelism."""
        return int(self._user_args().get("dp_size") or 1) > 1

    def _user_args(self) -> dict[str, Any]:
        return {server_arg(name).field: value for name, value in self.user.items()}

    def server_args(self, port: int, weight_version: int, inner_port: int) -> dict[str, Any]:
        """ServerArgs field -> value. `inner_port`: where the engine's own ranks meet.

        On a GPU, SGLang's own defaults hold for everything that is not named."""
        args: dict[str, Any] = {
            "model_path": str(self.model_path),
            "host": self.host,
            "port": port,
            # SGLang would ask for one among those of outgoing connections, and bind it seconds
            # later
            "nccl_port": inner_port,
            "tp_size": self.tp_size,
            "dtype": self.dtype,
            "random_seed": self.seed + self.index,  # engines of one seed would sample alike
            "weight_version": str(weight_version),
            "log_level_http": "warning",
        }
        if self.nnodes > 1:
            del args["nccl_port"]  # its ranks meet at `dist_init_addr`
            args |= {
                "nnodes": self.nnodes,
                "node_rank": self.node_rank,
                "dist_init_addr": self.dist_init_addr,
            }
        if self.returns_experts:
            args["enable_return_routed_experts"] = True
        if self.device == "cpu":
            args |= self._cpu_args()
        user = self._user_args()
        if self._has_replicas:
            args.pop("nccl_port", None)  # one a replica: SGLang's to choose
        return args | user

    def _cpu_args(self) -> dict[str, Any]:
        running = min(self.concurrency, MAX_RUNNING)
        most = max(KV_BYTES // kv_bytes_per_token(self.model_path), 2 * self.tokens_per_request)
        return {
            "device": "cpu",
            "attention_backend": "torch_native",
            "max_total_tokens": min(self.concurrency * self.tokens_per_request, most),
            "max_running_requests": running,
            "skip_server_warmup": True,
            "sleep_on_idle": True,  # else the scheduler spins on a core that the learner needs
            # nothing to overlap with, and version labels are exact without it
            "disable_overlap_schedule": True,
        }

    def command(self, port: int, weight_version: int, inner_port: int) -> list[str]:
        """The whole command line; serve.py explains the first words."""
        cpus = ",".join(map(str, self.cpus)) or "-"
        wrapper = [
            sys.executable,
            str(Path(__file__).with_name("serve.py")),
            str(os.getpid()),
            cpus,
        ]
        server = [sys.executable, "-m", "sglang.launch_server"]
        return [
            *wrapper,
            *server,
            *to_command_line(self.server_args(port, weight_version, inner_port)),
        ]

    def shown(self, command: Sequence[str]) -> str:
        """The command as a log may have it: without the keys that open the engine."""
        hidden = ("--api-key", "--admin-api-key")
        return " ".join(
            "***" if i and command[i - 1] in hidden else word for i, word in enumerate(command)
        )

    def _gpu_environment(self, base: Mapping[str, str]) -> dict[str, str]:
        kept = base.get("TMPDIR") or tempfile.gettempdir()
        out = {
            name: str(Path(kept) / f"{folder}_{os.getuid()}")
            for name, folder in COMPILED.items()
            if name not in base
        }
        path = [str(ROOT), *filter(None, [base.get("PYTHONPATH")])]
        out["PYTHONPATH"] = os.pathsep.join(path)
        if self.cuda_devices:
            out["CUDA_VISIBLE_DEVICES"] = ",".join(self.cuda_devices)
        return out

    def environment(self, base: Mapping[str, str], scratch: Path) -> dict[str, str]:
        """The environment of its processes. `scratch` takes the sockets and temporary files that
        SGLang never removes."""
        out = {**base, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
        out.setdefault("HF_HUB_OFFLINE", "1")  # the model is a folder on this machine
        if self.nnodes > 1:  # how its ranks find each other; SGLang would guess
            out["SGLANG_HOST_IP"] = self.host
        out.pop(UNTEMPERED, None)
        if self.device != "cpu":
            return out | self._gpu_environment(base)
        out |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(self.threads),
        }
        if not self._has_replicas:  # whose controller has threads of its own when they start
            out[FORKS] = "1"
        # SGLang compiles parts of vision towers, which needs Triton; its seeded sampler, which
        # takes longer than it ever saves here; and the choice of experts of GLM-4.5's kind, which
        # on a CPU fails at its own assertion.
        out.setdefault("TORCHDYNAMO_DISABLE", "1")
        if self.tp_size > 1:  # SGLang wants as many entries as ranks, or one NUMA node a rank
            cores = self.cpus or tuple(sorted(os.sched_getaffinity(0)))
            out.setdefault(
                "SGLANG_CPU_OMP_THREADS_BIND",
                "|".join(str(cores[rank % len(cores)]) for rank in range(self.tp_size)),
            )
        return engine_environment(out)


def kv_bytes_per_token(model_path: Path) -> int:
    """How many bytes the fp32 keys and values of one token take, by config.json.

    Raises CheckpointError when it cannot be read."""
    shape = _model_config(model_path)
    heads = int(shape.get("num_attention_heads", 1))
    head_dim = int(shape.get("head_dim") or int(shape.get("hidden_size", 1)) // heads)
    return (
        2
        * 4
        * head_dim
        * int(shape.get("num_key_value_heads") or heads)
        * int(shape.get("num_hidden_layers", 1))
    )


def experts_shape(model_path: Path) -> tuple[int, int]:
    """(layers, experts for a token) of a mixture of experts, by config.json.

    Raises ConfigError for a model without experts."""
    shape = _model_config(model_path)
    top_k = shape.get("num_experts_per_tok")
    if not top_k or not any(
        shape.get(n) for n in ("num_experts", "num_local_experts", "n_routed_experts")
    ):
        raise ConfigError(
            f"--use-rollout-routing-replay: {model_path} ({shape.get('model_type')}) has no"
            " experts. Drop the flag"
        )
    return int(shape["num_hidden_layers"]), int(top_k)


def tokens_per_request(rollouts: Sequence[RolloutConfig], model_path: Path) -> int:
    """The longest context a request can have, of training's rollouts and the evaluations': what the
    flags say, else what the model can, at most that."""
    longest = int(_model_config(model_path).get("max_position_embeddings") or CONTEXT_FALLBACK)
    return min(max(map(_tokens_asked, rollouts)), longest)


def _tokens_asked(rollout: RolloutConfig) -> int:
    prompt = rollout.rollout_max_prompt_len or CONTEXT_FALLBACK // 4
    return rollout.rollout_max_context_len or prompt + rollout.rollout_max_response_len


def _model_config(model_path: Path) -> dict[str, Any]:
    try:
        config = dict(json.loads((model_path / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{model_path / 'config.json'}: cannot be read ({error}); --hf-checkpoint needs a"
            " Hugging Face folder"
        ) from error
    return {**config, **(config.get("text_config") or {})}


def engine_cpus(first: int, width: int, cores: Sequence[int]) -> tuple[int, ...]:
    """`width` of the cores of a node under --cpu-affinity, after the `first` ones that others
    have, wrapping where there are too few."""
    return tuple(sorted({cores[(first + i) % len(cores)] for i in range(width)}))
