"""Does it learn off-policy? The quickstart's task, every token up to eight policy versions old,
five seeds, equal samples.

    python -m benchmarks.off_policy [--seeds 5] [--rollouts 100] [--staleness 8] [--lr 0.0007] \
        [--only tis,none]

One warmed-up model for all; then for every seed each method trains on the same number of samples:
synchronously (K = 0), and K = staleness rollouts behind, uncorrected or corrected. The first
rollout waits until all K + 1 are generated and groups are taken in the order of their completion,
so that the learner is always about K versions ahead of what it trains on (the mean staleness is in
the table). `uncorrected` clips against log-probs recomputed at consumption and pretends they were
the rollout's. Prints the table, with standard errors over seeds: `final` is the trained policy on
held-out prompts, 16 samples each; `last` and `mean` are rewards of the last ten rollouts and of
all, which stale policies generated. Writes results/off_policy.json and off_policy.svg."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, keep, table, train
from pipeline.report.summary import REWARD_WINDOW, trailing_mean
from pipeline.report.svg import Chart, Series, picture

METHODS: dict[str, tuple[str, ...]] = {
    "synchronous": (),
    "uncorrected": (),
    "tis": ("--use-tis",),
    "decoupled": ("--off-policy-correction", "decoupled-ppo"),
    "gspo": ("--advantage-estimator", "gspo", "--use-rollout-logprobs"),
}
LAST = 10  # rollouts


def flags(method: str, options: argparse.Namespace, model: Path, seed: int) -> list[str]:
    k = 0 if method == "synchronous" else options.staleness
    return [
        "--config",
        str(ROOT / "configs" / "presets" / "quickstart.yaml"),
        "--hf-checkpoint",
        str(model),
        *(() if "--use-tis" in METHODS[method] else ("--no-use-tis",)),
        "--sft-steps",
        "0",
        "--eval-interval",
        "1000000",
        "--n-samples-per-eval-prompt",
        "16",
        "--num-rollout",
        str(options.rollouts),
        "--async-buffer-size",
        str(k),
        "--lr",
        str(options.lr),
        "--buffer-selector",
        "fifo",
        "--min-size-to-sample",
        str(16 * (k + 1)),
        "--seed",
        str(seed),
        "--rollout-seed",
        str(seed),
        "--num-steps-per-rollout",
        str(options.steps),
        *METHODS[method],
    ]


def warm_model(folder: Path) -> Path:
    """The quickstart's policy after its warm-up: one rollout at a learning rate of 0."""
    preset = str(ROOT / "configs" / "presets" / "quickstart.yaml")
    command = [
        sys.executable,
        str(ROOT / "train_async.py"),
        "--config",
        preset,
        "--num-rollout",
        "1",
        "--lr",
        "0",
        "--async-buffer-size",
        "0",
    ]
    command += ["--eval-interval", "1000000", "--runs-dir", str(folder), "--name", "warm"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return (folder / "warm" / "checkpoints" / "latest" / "hf").resolve()


def run(method: str, options: argparse.Namespace, model: Path, seed: int) -> dict[str, Any]:
    found = train(*flags(method, options, model, seed))
    rows = found["train"]
    rewards = [r["reward_mean"] for r in rows]
    out = {
        "method": method,
        "seed": seed,
        "rewards": [round(r, 4) for r in rewards],
        "final": found["eval"][-1]["reward_mean"],
        "last": statistics.fmean(rewards[-LAST:]),
        "mean": statistics.fmean(rewards),
        "staleness": statistics.fmean(r["staleness_mean"] for r in rows),
        "ess_fraction": statistics.fmean(r["ess_fraction"] for r in rows),
    }
    print(json.dumps({k: v for k, v in out.items() if k != "rewards"}), flush=True)
    return out


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for method in dict.fromkeys(r["method"] for r in runs):
        mine = [r for r in runs if r["method"] == method]
        row: dict[str, Any] = {"method": method, "seeds": len(mine)}
        for name in ("final", "last", "mean"):
            values = [r[name] for r in mine]
            row[name] = statistics.fmean(values)
            row[f"{name}_se"] = (
                statistics.stdev(values) / math.sqrt(len(values))
                if len(values) > 1
                else float("nan")
            )
        row["staleness"] = statistics.fmean(r["staleness"] for r in mine)
        row["ess_fraction"] = statistics.fmean(r["ess_fraction"] for r in mine)
        out.append(row)
    return out


def curves(runs: list[dict[str, Any]]) -> Chart:
    """A line a method: the mean over its seeds."""
    series = []
    for color, method in enumerate(dict.fromkeys(r["method"] for r in runs)):
        rewards = [r["rewards"] for r in runs if r["method"] == method]
        smooth = trailing_mean([statistics.fmean(values) for values in zip(*rewards, strict=True)])
        points = list(enumerate(smooth, start=1))
        series.append(Series(label=method, points=points, color=color))
    return Chart(
        series=series,
        x_label="rollouts trained",
        y_label=f"mean reward (of {REWARD_WINDOW}, over seeds)",
        height=300,
        y_range=(0, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--staleness", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.0007)
    parser.add_argument("--steps", type=int, default=1, help="optimizer steps a rollout")
    parser.add_argument("--model", type=Path, help="a warmed-up model's folder; default: made")
    parser.add_argument("--only", default=",".join(METHODS))
    parser.add_argument("--dry", action="store_true", help="keep nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slipstream-off-policy-") as folder:
        model = options.model or warm_model(Path(folder))
        runs = [
            run(m, options, model, 1000 + s)
            for s in range(options.seeds)
            for m in options.only.split(",")
        ]
    rows = summary(runs)
    table(list(rows[0]), [list(row.values()) for row in rows])
    if not options.dry:
        keep(
            "off_policy",
            {
                "options": {k: str(v) for k, v in vars(options).items()},
                "summary": rows,
                "runs": runs,
            },
        )
        title = f"Tokens up to {options.staleness} versions old"
        (RESULTS / "off_policy.svg").write_text(picture(title, [curves(runs)]), encoding="utf-8")


if __name__ == "__main__":
    main()
