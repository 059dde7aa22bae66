"""Every estimator and every correction on the real path: SGLang, the buffer, Megatron, on the
quickstart's task from one warmed-up model.

    python -m benchmarks.catalogue [--rollouts 40] [--only ppo,tis]

Not a contest: one seed, one learning rate for all, few rollouts. It shows that each runs and
learns. Prints the mean reward of the first and the last five rollouts, writes
results/catalogue.json."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, keep, table, train
from benchmarks.off_policy import warm_model
from configs.corrections import PRESETS

ESTIMATORS: dict[str, tuple[str, ...]] = {
    "grpo": (),
    "gspo": (),
    "cispo": (),
    "sapo": (),
    "vespo": (),
    "dr_grpo": (),
    "max_rl": (),
    "opob": (),
    "rloo": (),
    "reinforce_plus_plus": ("--normalize-advantages",),
    "reinforce_plus_plus_baseline": ("--normalize-advantages",),
    "ppo": ("--critic-lr", "0.001", "--normalize-advantages"),
}


def flags(model: Path, rollouts: int) -> list[str]:
    return [
        "--config",
        str(ROOT / "configs" / "presets" / "quickstart.yaml"),
        "--hf-checkpoint",
        str(model),
        "--no-use-tis",
        "--sft-steps",
        "0",
        "--eval-interval",
        "1000000",
        "--num-rollout",
        str(rollouts),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rollouts", type=int, default=40)
    parser.add_argument("--model", type=Path, help="a warmed-up model's folder; default: made")
    parser.add_argument("--only", help="names, with commas between")
    options = parser.parse_args()
    runs = {name: ("--advantage-estimator", name, *more) for name, more in ESTIMATORS.items()}
    runs |= {name: ("--off-policy-correction", name) for name in PRESETS if name != "none"}
    if options.only:
        runs = {name: runs[name] for name in options.only.split(",")}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="slipstream-catalogue-") as folder:
        model = options.model or warm_model(Path(folder))
        for name, more in runs.items():
            rewards = [
                r["reward_mean"] for r in train(*flags(model, options.rollouts), *more)["train"]
            ]
            rows.append(
                {
                    "name": name,
                    "first": statistics.fmean(rewards[:5]),
                    "last": statistics.fmean(rewards[-5:]),
                }
            )
            print(rows[-1], flush=True)
    table(list(rows[0]), [list(row.values()) for row in rows])
    keep("catalogue", {"rollouts": options.rollouts, "rows": rows})


if __name__ == "__main__":
    main()
