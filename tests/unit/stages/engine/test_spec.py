from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compat import FORKS
from configs.schema import RolloutConfig
from pipeline.core.errors import CheckpointError
from stages.engine.spec import EngineSpec, engine_cpus, kv_bytes_per_token, tokens_per_request

SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 1024,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return tmp_path


def make(model: Path, **kwargs: Any) -> EngineSpec:
    fields: dict[str, Any] = {
        "index": 1,
        "model_path": model,
        "log_path": model / "log",
        "device": "cpu",
        "dtype": "float32",
    } | kwargs
    return EngineSpec(**fields)


def option(spec: EngineSpec, name: str) -> str | None:
    words = spec.command(30000, 7, 30001)
    return words[words.index(name) + 1] if name in words else None


def test_on_a_cpu_memory_is_bounded_and_labels_are_exact(model: Path) -> None:
    spec = make(model, concurrency=16, tokens_per_request=100)
    words = spec.command(30000, 7, 30001)
    assert option(spec, "--max-total-tokens") == "1600"
    assert (
        option(spec, "--device") == "cpu" and option(spec, "--attention-backend") == "torch_native"
    )
    assert (
        option(spec, "--weight-version") == "7"
        and option(spec, "--port") == "30000"
        and option(spec, "--host") == "127.0.0.1"
    )
    assert "--disable-overlap-schedule" in words and "--sleep-on-idle" in words
    most = (1 << 30) // kv_bytes_per_token(model)
    assert option(
        make(model, concurrency=1 << 20, tokens_per_request=1 << 10), "--max-total-tokens"
    ) == str(most)
    assert option(make(model, concurrency=1 << 20), "--max-running-requests") == "256"


def test_on_a_gpu_sglangs_own_choices_stay(model: Path) -> None:
    words = make(model, device="cuda", dtype="bfloat16", tp_size=2).command(30000, 0, 30001)
    flags = {word for word in words if word.startswith("--")}
    assert flags == {
        "--model-path",
        "--host",
        "--port",
        "--nccl-port",
        "--tp-size",
        "--dtype",
        "--random-seed",
        "--weight-version",
        "--log-level-http",
    }


def test_the_users_flags_win(model: Path) -> None:
    user = {
        "max_total_tokens": 512,
        "disable_overlap_schedule": False,
        "tensor_parallel_size": "2",
        "lora_paths": ["a", "b"],
    }
    spec = make(model, user=user)
    words = spec.command(30000, 0, 30001)
    assert option(spec, "--max-total-tokens") == "512" and option(spec, "--tp-size") == "2"
    assert "--disable-overlap-schedule" not in words
    at = words.index("--lora-paths")
    assert words[at + 1 : at + 3] == ["a", "b"]
    assert (
        option(make(model), "--nccl-port") == "30001"
        and option(make(model, user={"nccl_port": 29999}), "--nccl-port") == "29999"
    )
    assert option(make(model, user={"data_parallel_size": 2}), "--nccl-port") is None


def test_engines_do_not_share_a_sampling_seed(model: Path) -> None:
    assert option(make(model, index=0), "--random-seed") != option(
        make(model, index=1), "--random-seed"
    )


def test_an_engine_copies_its_processes_only_on_a_cpu_and_without_replicas(model: Path) -> None:
    assert make(model).environment({}, model)[FORKS]
    assert FORKS not in make(model, user={"data_parallel_size": 2}).environment({}, model)
    assert FORKS not in make(model, device="cuda").environment({}, model)


def test_the_stubs_reach_an_engine_only_on_a_cpu(model: Path) -> None:
    base = {"PATH": "/bin", "PYTHONPATH": "/somewhere"}
    cpu = make(model).environment(base, model)
    assert (
        any(part.endswith("compat/site") for part in cpu["PYTHONPATH"].split(":"))
        and "/somewhere" in cpu["PYTHONPATH"]
    )
    assert (
        cpu["SGLANG_USE_CPU_ENGINE"] == "1"
        and cpu["OMP_NUM_THREADS"] == "1"
        and cpu["TORCHDYNAMO_DISABLE"] == "1"
    )
    gpu = make(model, device="cuda", cuda_devices=("2", "3")).environment(base, model)
    assert "compat/site" not in gpu["PYTHONPATH"] and "SGLANG_USE_CPU_ENGINE" not in gpu
    assert gpu["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_compiled_kernels_outlive_an_engine_on_a_gpu(model: Path) -> None:
    base = {"TMPDIR": "/big", "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "/mine"}
    gpu = make(model, device="cuda").environment(base, model / "scratch")
    assert gpu["TMPDIR"] == str(model / "scratch")
    assert gpu["TORCHINDUCTOR_CACHE_DIR"].startswith("/big/torchinductor_")
    assert gpu["FLASH_ATTENTION_CUTE_DSL_CACHE_DIR"] == "/mine"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_log_probs_are_of_what_is_sampled_from(model: Path, device: str) -> None:
    base = {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}
    assert not make(model, device=device).environment(base, model).keys() & base.keys()


def test_kv_bytes(model: Path) -> None:
    # keys and values, fp32, layers, head_dim = 64 / 4, KV heads
    assert kv_bytes_per_token(model) == 2 * 4 * 2 * 16 * 2


def test_a_context_is_what_the_flags_say_and_at_most_what_the_model_can(model: Path) -> None:
    assert tokens_per_request([RolloutConfig(rollout_max_context_len=300)], model) == 300
    assert (
        tokens_per_request(
            [
                RolloutConfig(rollout_max_prompt_len=50, rollout_max_response_len=70),
                RolloutConfig(rollout_max_context_len=90),
            ],
            model,
        )
        == 120
    )
    assert tokens_per_request([RolloutConfig(rollout_max_response_len=4096)], model) == 1024


def test_an_unreadable_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*--hf-checkpoint"):
        kv_bytes_per_token(tmp_path)


def test_an_engines_cores_come_after_those_that_others_have() -> None:
    assert engine_cpus(2, 2, range(8)) == (2, 3)
    assert engine_cpus(4, 2, range(8)) == (4, 5)
    assert engine_cpus(6, 4, range(8)) == (0, 1, 6, 7)
    assert engine_cpus(3, 2, (5,)) == (5,)


def test_an_engine_over_two_nodes(model: Path) -> None:
    words = make(
        model, host="10.0.0.2", tp_size=16, nnodes=2, node_rank=1, dist_init_addr="10.0.0.1:20000"
    ).command(30000, 0, 30001)
    said = " ".join(words)
    assert "--host 10.0.0.2" in said
    assert "--nnodes 2 --node-rank 1 --dist-init-addr 10.0.0.1:20000" in said
    assert "--nccl-port" not in said and "--tp-size 16" in said


def test_a_log_does_not_have_the_keys(model: Path) -> None:
    spec = make(model, user={"api_key": "secret"})
    shown = spec.shown(spec.command(30000, 0, 30001))
    assert "--api-key ***" in shown and "secret" not in shown
