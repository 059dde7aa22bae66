"""What the async buffer buys: K = 0 (synchronous) against K = 1, 2, 4, with long-tailed response
lengths.

    python benchmarks/overlap.py mock     # simulated engines and learner
    python benchmarks/overlap.py real     # SGLang and Megatron, each pool pinned to one core; a
                                          randomly initialised small model,
                                          # whose response lengths are geometric

Prints seconds a rollout after start-up (from the first train record to the last), their ratio to K
= 0, and idle shares."""

from __future__ import annotations

import argparse
from typing import Any

from common import keep, table, train

MOCK = (
    "--mock",
    "--rollout-batch-size",
    "8",
    "--n-samples-per-prompt",
    "8",
    "--mock-length-mean",
    "64",
    "--mock-length-sigma",
    "1.0",
    "--mock-seconds-per-token",
    "0.002",
    "--mock-step-seconds",
    "0.25",
    "--rollout-max-response-len",
    "1024",
)
# eight of the model's 278 tokens end a response: geometric, mean about 33
STOPS = tuple(str(token) for token in range(97, 105))
REAL = (
    "--hf-checkpoint",
    "tiny:configs/models/quickstart-qwen3.yaml",
    "--prompt-data",
    "reasoning_gym:spell_backward",
    "--rm-type",
    "random",
    "--rollout-max-response-len",
    "256",
    "--rollout-stop-token-ids",
    *STOPS,
    "--rollout-batch-size",
    "8",
    "--n-samples-per-prompt",
    "8",
    "--lr",
    "1e-8",
    "--use-tis",
    "--cpu-affinity",
)


def measure(mode: str, k: int, num_rollout: int) -> dict[str, Any]:
    run = train(
        *(MOCK if mode == "mock" else REAL),
        "--num-rollout",
        str(num_rollout),
        "--async-buffer-size",
        str(k),
    )
    rows = run["train"]
    weights = [r["interval_seconds"] for r in rows[1:]]

    def share(name: str) -> float:
        return sum(r[name] * w for r, w in zip(rows[1:], weights, strict=True)) / sum(weights)

    return {
        "K": k,
        "seconds_per_rollout": (
            (rows[-1]["wall_seconds"] - rows[0]["wall_seconds"]) / (len(rows) - 1)
        ),
        "trainer_idle": share("trainer_idle_fraction"),
        "generation_idle": share("generation_idle_fraction"),
        "staleness_mean": sum(r["staleness_mean"] for r in rows) / len(rows),
        "staleness_max": max(r["staleness_max"] for r in rows),
        "response_tokens": sum(r["num_response_tokens"] for r in rows) / len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["mock", "real"])
    parser.add_argument("--num-rollout", type=int, default=24)
    options = parser.parse_args()
    found = [measure(options.mode, k, options.num_rollout) for k in (0, 1, 2, 4)]
    for f in found:
        f["speedup_over_K0"] = found[0]["seconds_per_rollout"] / f["seconds_per_rollout"]
    table(list(found[0]), [list(f.values()) for f in found])
    keep(f"overlap_{options.mode}", {"num_rollout": options.num_rollout, "runs": found})


if __name__ == "__main__":
    main()
