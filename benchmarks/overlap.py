"""What the async buffer buys, with long-tailed response lengths: K rollouts ahead, and a bound on
staleness of S = K (`tight`) or 2K policy versions (`slack`, which buys reordering).

    python -m benchmarks.overlap mock --k 0 1 2 4 --engines 4
    python -m benchmarks.overlap mock --k 4 --engines 1 4 16 64 256 1024 --name engines
    python -m benchmarks.overlap real --k 0 4    # SGLang and Megatron, each pool pinned to a core

All settings run in turns, `--repeats` times (simulated: with a seed each). Printed and kept is the
median over the turns, with the smallest and the largest; `slack_over_tight` compares the two bounds
within a turn. Seconds a rollout, idle shares and staleness leave out the first and the last K + 1
rollouts, where the buffer fills and where nothing more is admitted.

Simulated time passes as on an ideal machine (benchmarks/virtual_train.py): what the driver computes
takes none of it, and whoever else uses this machine changes nothing. Engines have a capacity: at
most so many requests decode at once, and a step takes the longer, the more do. So there is an ideal
bound, the larger of generation (tokens over what all slots decode a second) and training:
`bound_over_wall` is 1 where that is reached. `slots_busy` is the share of slots and time in which a
token was decoded; `generation_idle` counts an engine as idle only when it has no request at all.
`--sglang-server-concurrency` is the engine's capacity, so nothing waits in one engine while another
has room. Real ones too: one engine of 8 requests at most, a quarter of a rollout, as simulated; a
model of ten million random weights, and lengths from benchmarks/lengths.py.
`--add` keeps the turns that the results file has already."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.common import ENTRY, RESULTS, ROOT, keep, spread, table, train

# 4 engines of 16 slots, whose step of 16 requests takes 4 ms: 16,000 tokens a second. A rollout is
# 256 responses, about 16,000 tokens: generation and training both take a second, and the longest
# response (1,024 tokens) takes four. What no bound on throughput knows: where the longest response
# takes longer than --max-staleness rollouts, the learner must wait for it.
SLOTS = 64  # of all engines together, while there are not more engines than that
SAMPLES_PER_SLOT, GROUP = 4, 8
STEP_SECONDS, SECONDS_PER_REQUEST = 0.003, 0.0000625
TRAIN_SECONDS = 1.0
MOCK = (
    "--mock",
    *("--n-samples-per-prompt", str(GROUP), "--rollout-max-response-len", "1024"),
    *("--mock-length-mean", "64", "--mock-length-sigma", "1.0"),
    *("--mock-push-seconds", "0.001", "--rollout-num-gpus-per-engine", "1"),
)
REAL = (
    *("--hf-checkpoint", "tiny:benchmarks/models/qwen3-wide.yaml"),
    *("--prompt-data", "reasoning_gym:spell_backward", "--rm-type", "random"),
    *("--custom-generate-function-path", str(ROOT / "benchmarks" / "lengths.py")),
    *("--rollout-max-response-len", "256", "--sglang-server-concurrency", "8"),
    *("--rollout-batch-size", "8", "--n-samples-per-prompt", "4"),
    *("--lr", "1e-8", "--use-tis", "--cpu-affinity"),
)
FIGURES = ("seconds_per_rollout", "staleness_mean", "trainer_idle", "generation_idle")
Turn = dict[str, Any]
VIRTUAL = ROOT / "benchmarks" / "virtual_train.py"


def measure(
    flags: Iterable[str], k: int, staleness: int, num_rollout: int, entry: Path = ENTRY
) -> Turn:
    """One run."""
    bound = ("--max-staleness", str(staleness)) if k else ()
    ahead = ("--async-buffer-size", str(k), *bound)
    run = train(*flags, *ahead, "--num-rollout", str(num_rollout), entry=entry)
    every = run["train"]
    rows = every[k : len(every) - k - 1]
    weights = [r["interval_seconds"] for r in rows[1:]]

    def share(name: str) -> float:
        return sum(r[name] * w for r, w in zip(rows[1:], weights, strict=True)) / sum(weights)

    return {
        "seconds_per_rollout": (
            (rows[-1]["wall_seconds"] - rows[0]["wall_seconds"]) / (len(rows) - 1)
        ),
        "trainer_idle": share("trainer_idle_fraction"),
        "generation_idle": share("generation_idle_fraction"),
        "staleness_mean": fmean(r["staleness_mean"] for r in rows),
        "staleness_max": max(r["staleness_max"] for r in rows),
        "response_tokens": fmean(r["num_response_tokens"] for r in rows[1:]),
        "step_seconds": fmean(r["step_seconds"] for r in rows[1:]),
        "push_trainer_seconds": median(p["trainer_seconds"] for p in run["push"][1:]),
    }


def mock_turn(number: int, k: int, staleness: int, options: argparse.Namespace, i: int) -> Turn:
    """Beyond SLOTS engines each has one slot, and a rollout grows with them."""
    slots = max(SLOTS, number)
    each = SECONDS_PER_REQUEST * 16 * number / slots  # a full engine's step is always 4 ms
    flags = (
        *MOCK,
        *("--rollout-batch-size", str(slots * SAMPLES_PER_SLOT // GROUP), "--seed", str(1 + i)),
        *("--rollout-num-gpus", str(number)),
        *("--mock-max-running-requests", str(slots // number)),
        *("--sglang-server-concurrency", str(slots // number)),
        *("--mock-seconds-per-token", str(STEP_SECONDS)),
        *("--mock-seconds-per-running-request", str(each)),
        *("--mock-step-seconds", str(TRAIN_SECONDS)),
    )
    turn = measure(flags, k, staleness, options.num_rollout, VIRTUAL)
    step = STEP_SECONDS + 16 * SECONDS_PER_REQUEST
    generation, took = turn["response_tokens"] * step / slots, turn["seconds_per_rollout"]
    bound = max(generation, TRAIN_SECONDS)
    more = {"bound": bound, "bound_over_wall": bound / took, "slots_busy": generation / took}
    return turn | more


def real_turn(number: int, k: int, staleness: int, options: argparse.Namespace, i: int) -> Turn:
    assert number == 1
    return measure(REAL, k, staleness, options.num_rollout)


def settings(options: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Engines, K, S."""
    return [
        (number, k, staleness)
        for number in options.engines
        for k in options.k
        for staleness in sorted({times * k for times in options.times})
    ]


def rounds(options: argparse.Namespace, turn: Callable[..., Turn]) -> list[dict[str, Any]]:
    """Every setting with its turns."""
    kept = {(r["engines"], r["K"], r["max_staleness"]): r["turns"] for r in before(options)}
    for i in range(options.repeats):
        todo = settings(options)
        for number, k, staleness in todo if i % 2 == 0 else reversed(todo):
            done = turn(number, k, staleness, options, i)
            kept.setdefault((number, k, staleness), []).append(done)
            print(number, k, staleness, done, flush=True)
    return [
        {"engines": number, "K": k, "max_staleness": staleness, "turns": turns}
        for (number, k, staleness), turns in kept.items()
    ]


def before(options: argparse.Namespace) -> list[dict[str, Any]]:
    path = RESULTS / f"{file_of(options)}.json"
    if not options.add or not path.exists():
        return []
    return [run for run in json.loads(path.read_text())["runs"] if "turns" in run]


def file_of(options: argparse.Namespace) -> str:
    return "_".join(["overlap", options.mode, *([options.name] if options.name else [])])


def summary(runs: list[dict[str, Any]]) -> None:
    """Adds to every setting its medians and spreads, and the ratio of the two bounds, turn by
    turn."""
    seconds = {
        (r["engines"], r["K"], r["max_staleness"]): [t["seconds_per_rollout"] for t in r["turns"]]
        for r in runs
    }
    for run in runs:
        number, k, turns = run["engines"], run["K"], run["turns"]
        names = [n for n in (*FIGURES, "bound_over_wall", "slots_busy") if n in turns[0]]
        for name in names:
            run[name] = spread([turn[name] for turn in turns])
        tight = seconds.get((number, k, k))
        if k and run["max_staleness"] == 2 * k and tight:
            mine = seconds[number, k, 2 * k]
            run["slack_over_tight"] = spread([a / b for a, b in zip(mine, tight, strict=False)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["mock", "real"])
    parser.add_argument("--k", type=int, nargs="*", default=[0, 1, 2, 4])
    parser.add_argument("--times", type=int, nargs="*", default=[1, 2], help="S over K")
    parser.add_argument("--num-rollout", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", type=int, nargs="*", default=None, help="mock only")
    parser.add_argument("--add", action="store_true", help="to the turns that are kept")
    parser.add_argument("--name", default="", help="of the results file, beside the mode")
    options = parser.parse_args()
    options.engines = options.engines or [{"mock": 4, "real": 1}[options.mode]]
    runs = rounds(options, {"mock": mock_turn, "real": real_turn}[options.mode])
    summary(runs)
    shown = [n for n in (*FIGURES, "bound_over_wall", "slots_busy") if n in runs[0]["turns"][0]]
    table(
        ["engines", "K", "S", "turns", *shown, "slack_over_tight"],
        [
            [r["engines"], r["K"], r["max_staleness"], len(r["turns"])]
            + [r[name]["median"] for name in shown]
            + [r.get("slack_over_tight", {}).get("median", "")]
            for r in runs
        ],
    )
    keep(file_of(options), {"num_rollout": options.num_rollout, "runs": runs})


if __name__ == "__main__":
    main()
