"""SGLang's flags that flags of ours set already: one that says otherwise is refused, for engines
would be started on devices that they do not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from configs.flags import words_of
from configs.schema import Config

# ServerArgs field -> who says it
_SET_HERE: Mapping[str, str] = {
    "model_path": "engines serve --hf-checkpoint",
    "random_seed": "engine after engine gets one from --seed",
    "weight_version": "it is the policy version, which every push raises",
    "nccl_port": "every engine gets a free one",
    "dist_init_addr": "an engine is on one node, which Ray chooses",
    "nnodes": "an engine is on one node, which Ray chooses",
    "node_rank": "an engine is on one node, which Ray chooses",
    "base_gpu_id": "an engine sees only the devices that are its own",
    "gpu_id_step": "an engine sees only the devices that are its own",
}


def engine_flags(config: Config) -> Iterator[str]:
    given = {name: value for name, value in config.sglang.items() if value is not None}
    for name, why in _SET_HERE.items():
        if name in given:
            yield f"{_said(given, name)}: {why}. Drop it"
    if "port" in given and config.num_engines > 1:
        yield (
            f"{_said(given, 'port')} with {config.num_engines} engines (--rollout-num-gpus /"
            " --rollout-num-gpus-per-engine): each needs a port of its own. Drop it"
        )
    yield from _sizes(config, given)
    if given.get("quantization") not in (None, "none") and not config.run.debug_rollout_only:
        yield (
            f"{_said(given, 'quantization')}: a push brings weights as the learner has them, and"
            " such an engine keeps them in another format. Drop it"
        )
    key, admin = given.get("api_key"), given.get("admin_api_key")
    if key and admin and key != admin:
        yield (
            "--sglang-api-key and --sglang-admin-api-key differ: generation and pushes send one"
            " key. Drop --sglang-admin-api-key, or give both the same"
        )


def _sizes(config: Config, given: Mapping[str, Any]) -> Iterator[str]:
    """An engine's devices are its pipeline stages x the tensor ranks of a stage; replicas of the
    attention and shares of the experts are made of the latter."""
    each = config.cluster.rollout_num_gpus_per_engine
    devices = f"--rollout-num-gpus-per-engine {each}"
    stages, tensor = int(given.get("pp_size", 1)), int(given.get("tp_size", each))
    if each % stages:
        yield (
            f"{_said(given, 'pp_size')} with {devices}: an engine's devices are no multiple of its"
            f" pipeline stages. Use --rollout-num-gpus-per-engine {-(-each // stages) * stages}"
        )
    elif "tp_size" in given and tensor * stages != each:
        yield (
            f"{_said(given, 'tp_size')} with {devices}: the latter says how many devices an engine"
            f" has, and all of them are its tensor ranks. Drop --sglang-tp-size, or say"
            f" --rollout-num-gpus-per-engine {tensor * stages}"
        )
    tensor = each // stages
    replicas, shares = int(given.get("dp_size", 1)), int(given.get("ep_size", 1))
    if replicas > 1 and not given.get("enable_dp_attention"):
        yield (
            f"{_said(given, 'dp_size')} without --sglang-enable-dp-attention: whole replicas are"
            " engines of their own here. Raise --rollout-num-gpus instead, or add"
            " --sglang-enable-dp-attention"
        )
    for name, size in (("dp_size", replicas), ("ep_size", shares)):
        if tensor % size:
            yield (
                f"{_said(given, name)} with {devices}: it must divide an engine's {tensor} tensor"
                f" ranks. Use one of {', '.join(map(str, _divisors(tensor)))}"
            )


def _said(given: Mapping[str, Any], name: str) -> str:
    return f"--sglang-{name.replace('_', '-')} {' '.join(words_of(given[name]))}"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
