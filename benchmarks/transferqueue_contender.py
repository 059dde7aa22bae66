"""TransferQueue's side of benchmarks/buffer.py, run by an interpreter that has it; prints one JSON
line at the end.

The key-value interface (transfer_queue.kv_batch_put, kv_put, kv_batch_get), the backend of its
defaults (SimpleStorage, two storage units), four tensor columns: tokens [n, R] int64, loss_mask [n,
R] uint8, rollout_log_probs [n, R] float32, weight_versions [n, 3] int64. Ray gets 16 logical CPUs:
the controller and the storage units ask for whole ones. Clearing is not timed."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from time import perf_counter
from typing import Any

os.environ.setdefault("RAY_DEDUP_LOGS", "0")
PARTITION = "benchmark"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("samples", "response-tokens", "singles", "rounds", "warmup"):
        parser.add_argument(f"--{name}", type=int, required=True)
    a = parser.parse_args()
    import ray
    import transfer_queue as tq

    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level="error")
    tq.init()
    try:
        out = {
            "batched": [_batched(tq, a, number) for number in range(-a.warmup, a.rounds)][
                a.warmup :
            ],
            "single": [_single(tq, a, number) for number in range(-1, a.rounds)][1:],
        }
    finally:
        tq.close()
        ray.shutdown()
    versions = {
        name: importlib.metadata.version(name) for name in ("TransferQueue", "ray", "torch")
    }
    print(json.dumps({"versions": versions, **out}))


def _columns(n: int, response_tokens: int) -> dict[str, Any]:
    import torch

    return {
        "tokens": torch.randint(0, 150_000, (n, response_tokens), dtype=torch.int64),
        "loss_mask": torch.ones((n, response_tokens), dtype=torch.uint8),
        "rollout_log_probs": torch.randn((n, response_tokens), dtype=torch.float32),
        "weight_versions": torch.tensor([[0, 0, response_tokens]] * n, dtype=torch.int64),
    }


def _batched(tq: Any, a: argparse.Namespace, number: int) -> tuple[float, float]:
    """(put, get) seconds of one batch of fresh keys."""
    from tensordict import TensorDict

    fields = TensorDict(_columns(a.samples, a.response_tokens), batch_size=a.samples)
    keys = [f"{number}_{i}" for i in range(a.samples)]
    start = perf_counter()
    tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=fields)
    middle = perf_counter()
    got = tq.kv_batch_get(keys=keys, partition_id=PARTITION)
    end = perf_counter()
    if number < 0:
        _check(fields, got)
    tq.kv_clear(keys=keys, partition_id=PARTITION)
    return middle - start, end - middle


def _single(tq: Any, a: argparse.Namespace, number: int) -> tuple[float, float]:
    """(put, get) seconds, summed over samples that go one at a time."""
    columns, put, get = _columns(a.singles, a.response_tokens), 0.0, 0.0
    for i in range(a.singles):
        fields, key = {name: column[i] for name, column in columns.items()}, f"s{number}_{i}"
        start = perf_counter()
        tq.kv_put(key=key, partition_id=PARTITION, fields=fields)
        middle = perf_counter()
        got = tq.kv_batch_get(keys=key, partition_id=PARTITION)
        end = perf_counter()
        put, get = put + middle - start, get + end - middle
        if number < 0:
            _check({name: column[None] for name, column in fields.items()}, got)
        tq.kv_clear(keys=key, partition_id=PARTITION)
    return put, get


def _check(put: Any, got: Any) -> None:
    import torch

    for name in put.keys():  # noqa: SIM118 (a TensorDict iterates over rows)
        rows = got[name].unbind() if got[name].is_nested else got[name]
        same = len(rows) == len(put[name]) and all(
            torch.equal(a, b) for a, b in zip(put[name], rows, strict=True)
        )
        if not same:
            raise RuntimeError(f"TransferQueue: column {name} comes back changed")


if __name__ == "__main__":
    main()
