"""What the async buffer buys: K = 0 (synchronous) against K = 1, 2, 4, with long-tailed response
lengths, each with a bound on staleness of K and of 2K.

    python benchmarks/overlap.py mock     # simulated engines and learner
    python benchmarks/overlap.py real     # SGLang and Megatron, each pool pinned to one core; a
                                          randomly initialised small model,
                                          # whose response lengths are geometric

Prints seconds a rollout after start-up (from the first train record to the last) and idle shares;
of real parts their ratio to K = 0. Simulated engines have a capacity: at most so many requests
decode at once, and a step takes the longer, the more do. So there is an ideal bound, the larger of
generation (tokens over what all slots decode a second) and training: `bound_over_wall` is 1 where
that is reached. `slots_busy` is the share of slots and time in which a token was decoded;
`generation_idle` counts an engine as idle only when it has no request at all."""

from __future__ import annotations

import argparse
from typing import Any

from common import keep, table, train

# 4 engines of 16 slots, whose step of 16 requests takes 4 ms: 16,000 tokens a second. A rollout is
# 256 responses, about 16,000 tokens: generation and training both take a second, and the longest
# response (1,024 tokens) takes four. What no bound on throughput knows: where the longest response
# takes longer than --max-staleness rollouts, the learner must wait for it.
SLOTS = 64  # of all engines together
STEP_SECONDS, SECONDS_PER_REQUEST = 0.003, 0.0000625
TRAIN_SECONDS = 1.0
MOCK = (
    "--mock",
    *("--rollout-batch-size", "32", "--n-samples-per-prompt", "8"),
    *("--mock-length-mean", "64", "--mock-length-sigma", "1.0"),
    *("--rollout-max-response-len", "1024", "--mock-step-seconds", str(TRAIN_SECONDS)),
    *("--mock-push-seconds", "0.001", "--rollout-num-gpus-per-engine", "1"),
)


def engines(number: int) -> tuple[str, ...]:
    """So many engines that share the slots, and are together as fast as four of 16 slots are."""
    slots = SLOTS // number
    each = SECONDS_PER_REQUEST * 16 / slots
    return (
        *("--rollout-num-gpus", str(number), "--mock-max-running-requests", str(slots)),
        *("--mock-seconds-per-token", str(STEP_SECONDS)),
        *("--mock-seconds-per-running-request", str(each)),
    )


TOKENS_PER_SECOND = SLOTS / (STEP_SECONDS + 16 * SECONDS_PER_REQUEST)
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


def measure(flags: tuple[str, ...], num_rollout: int) -> dict[str, Any]:
    run = train(*flags, "--num-rollout", str(num_rollout))
    rows = run["train"]
    weights = [r["interval_seconds"] for r in rows[1:]]

    def share(name: str) -> float:
        return sum(r[name] * w for r, w in zip(rows[1:], weights, strict=True)) / sum(weights)

    return {
        "seconds_per_rollout": (
            (rows[-1]["wall_seconds"] - rows[0]["wall_seconds"]) / (len(rows) - 1)
        ),
        "trainer_idle": share("trainer_idle_fraction"),
        "generation_idle": share("generation_idle_fraction"),
        "staleness_mean": sum(r["staleness_mean"] for r in rows) / len(rows),
        "staleness_max": max(r["staleness_max"] for r in rows),
        "response_tokens": sum(r["num_response_tokens"] for r in rows[1:]) / len(rows[1:]),
    }


def buffered(k: int, staleness: int) -> tuple[str, ...]:
    return ("--async-buffer-size", str(k), *(("--max-staleness", str(staleness)) if k else ()))


def mock(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for number in options.engines:
        for k in (0, 1, 2, 4):
            for staleness in (k, 2 * k) if k else (0,):
                flags = (*MOCK, *engines(number), *buffered(k, staleness))
                run = measure(flags, options.num_rollout)
                generation = run["response_tokens"] / TOKENS_PER_SECOND
                bound = max(generation, TRAIN_SECONDS)
                took = run["seconds_per_rollout"]
                found.append(
                    {
                        "engines": number,
                        "K": k,
                        "max_staleness": staleness,
                        **run,
                        "bound": bound,
                        "bound_over_wall": bound / took,
                        "slots_busy": generation / took,
                    }
                )
                print(found[-1], flush=True)
    return found


def real(options: argparse.Namespace) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for k in (0, 1, 2, 4):
        for staleness in (k, 2 * k) if k else (0,):
            run = measure((*REAL, *buffered(k, staleness)), options.num_rollout)
            took = run["seconds_per_rollout"]
            speedup = (found[0]["seconds_per_rollout"] if found else took) / took
            found.append({"K": k, "max_staleness": staleness, **run, "speedup_over_K0": speedup})
            print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["mock", "real"])
    parser.add_argument("--num-rollout", type=int, default=40)
    parser.add_argument(
        "--engines", type=int, nargs="*", default=[4], help="mock only; divisors of 64"
    )
    options = parser.parse_args()
    found = {"mock": mock, "real": real}[options.mode](options)
    table(list(found[0]), [list(f.values()) for f in found])
    keep(f"overlap_{options.mode}", {"num_rollout": options.num_rollout, "runs": found})


if __name__ == "__main__":
    main()
