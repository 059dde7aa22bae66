"""Does it learn off-policy? Every method at its own best learning rate, at a staleness that is
fixed and not raced, on the quickstart's task (answers of four tokens) or with a scratchpad (80).

    python -m benchmarks.off_policy run [--methods tis,none] [--staleness 0,8,16] [--hours 2]
    python -m benchmarks.off_policy table

each with `--task scratchpad` for the other.

`run`: from one warmed-up model, with `--fixed-staleness K` every trained token is exactly K policy
versions old (after the first K rollouts, which nothing older could have made). First each method,
at each staleness, is trained at every learning rate of the grid on the choosing seeds; the rate
whose runs end highest is then trained on fresh seeds. The synchronous run (K = 0) is chosen in the
same way from as many trials. The rate decays linearly to 0. A run's figure is the mean held-out
reward of the trained policy at the last five evaluations (256 prompts, 8 samples each).

Every run is a line of results/off_policy_runs.jsonl as soon as it is done; what is there is not
run again, so the experiment may be stopped at any time and taken up later, `--hours` at a time.
The warmed-up model is kept in models/off-policy/ (or is `--model`); its digest is in every line.

`table`: from those lines: the chosen rate, the figure with its 95 % confidence interval over
seeds, the paired difference to the synchronous run on the same seeds, and the median of samples to
a held-out reward of 0.9. Writes results/off_policy.json and off_policy.svg, or
off_policy_scratchpad.*."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, keep, table
from benchmarks.off_policy_engines import KeptEngines
from benchmarks.off_policy_runs import METHODS, SYNCHRONOUS, Book, Cell, Protocol, digest, run
from benchmarks.off_policy_statistics import best_rate, interval, paired, samples_to
from benchmarks.off_policy_tasks import MODEL, TASKS, Task
from pipeline.report.svg import Chart, Series, picture

MODELS = ROOT / "models" / "off-policy"
RUNS = RESULTS / "off_policy_runs.jsonl"
SAMPLES_A_ROLLOUT = 16 * 8  # the quickstart's


def warm_model(folder: Path, task: Task = TASKS["quickstart"]) -> Path:
    """The task's policy after its warm-up, made in `folder` if it is not there yet: one rollout at
    a learning rate of 0."""
    model = folder / "warm" / "checkpoints" / "latest" / "hf"
    if not model.exists():
        command = [sys.executable, str(ROOT / "train_async.py"), *task.flags, *task.warmup_flags]
        command += ["--hf-checkpoint", MODEL]
        if task.write_warmup is not None:
            folder.mkdir(parents=True, exist_ok=True)
            task.write_warmup(folder / "warmup.jsonl")
            command += ["--sft-data", str(folder / "warmup.jsonl")]
        command += ["--num-rollout", "1", "--lr", "0", "--async-buffer-size", "0"]
        command += ["--eval-interval", "0", "--runs-dir", str(folder), "--name", "warm"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return model.resolve()


def rows_asked(options: argparse.Namespace) -> list[tuple[str, int]]:
    """(method, staleness) of every row; the synchronous one first, for all are held against it."""
    rows = [(SYNCHRONOUS, 0)]
    rows += [(m, k) for k in options.staleness if k for m in options.methods]
    return rows


def stretches(options: argparse.Namespace, book: Book, protocol: Protocol) -> Iterator[list[Cell]]:
    """Every run of the experiment, in stretches whose runs do not wait for each other: of each row
    its choosing, then, decided by what the book says by then, its fresh seeds."""
    for method, staleness in rows_asked(options):
        yield [
            Cell(method=method, staleness=staleness, lr=lr, seed=seed)
            for seed in options.choosing_seeds
            for lr in options.rates
        ]
        lr = chosen_rate(options, book, protocol, method, staleness)
        yield [
            Cell(method=method, staleness=staleness, lr=lr, seed=seed)
            for seed in options.fresh_seeds
        ]


def chosen_rate(
    options: argparse.Namespace, book: Book, protocol: Protocol, method: str, staleness: int
) -> float:
    seeds = options.choosing_seeds
    return best_rate({lr: book.of(method, staleness, lr, seeds, protocol) for lr in options.rates})


def run_all(options: argparse.Namespace, protocol: Protocol) -> None:
    book = Book.open(options.runs)
    until = time.monotonic() + options.hours * 3600
    with (
        tempfile.TemporaryDirectory(prefix="slipstream-bench-") as folder,
        KeptEngines(options.model, options.side_by_side, Path(folder)) as engines,
    ):
        for stretch in stretches(options, book, protocol):
            run_stretch(stretch, book, protocol, options, engines, until)
            if time.monotonic() > until:
                print("the time is up; the same command goes on from here")
                return


def run_stretch(
    stretch: Sequence[Cell],
    book: Book,
    protocol: Protocol,
    options: argparse.Namespace,
    engines: KeptEngines,
    until: float,
) -> None:
    """Runs what is not in the book yet, and begins nothing after `until`."""

    def one(cell: Cell) -> dict[str, Any] | None:
        with engines.one() as flags:
            if time.monotonic() > until:
                return None
            return run(cell, protocol, options.model, flags)

    missing = [cell for cell in stretch if book.find(cell, protocol) is None]
    with ThreadPoolExecutor(options.side_by_side) as pool:
        try:
            for done in as_completed([pool.submit(one, cell) for cell in missing]):
                if (row := done.result()) is not None:
                    book.write(row)
                    print({k: v for k, v in row.items() if k != "held_out"}, flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # where one failed


def summary(options: argparse.Namespace, protocol: Protocol) -> list[dict[str, Any]]:
    """A line for every method and staleness of which a fresh seed is done."""
    book = Book.open(options.runs)

    def fresh(method: str, staleness: int) -> tuple[float, list[dict[str, Any]]]:
        lr = chosen_rate(options, book, protocol, method, staleness)
        return lr, book.of(method, staleness, lr, options.fresh_seeds, protocol)

    _, synchronous = fresh(SYNCHRONOUS, 0)
    out = []
    for method, staleness in rows_asked(options):
        try:
            lr, rows = fresh(method, staleness)
        except ValueError:
            continue  # not chosen yet
        if not rows:
            continue
        late, half = interval([r["late"] for r in rows])
        apart, apart_half = interval(paired(rows, synchronous))
        reached = [samples_to(0.9, r, SAMPLES_A_ROLLOUT) for r in rows]
        done = [r for r in reached if r is not None]
        out.append(
            {
                "method": "synchronous" if staleness == 0 else method,
                "staleness": staleness,
                "lr": lr,
                "seeds": len(rows),
                "late": late,
                "late_95": half,
                "minus_sync": apart,
                "minus_sync_95": apart_half,
                "to_0.9_samples": statistics.median(done) if done else None,
                "to_0.9_runs": len(done),
                "ess": statistics.fmean(r["ess_fraction"] for r in rows),
                "held_out": mean_curve(rows),
            }
        )
    return out


def mean_curve(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """[(rollouts trained, held-out reward, the mean over seeds)]."""
    at = [rollout for rollout, _ in rows[0]["held_out"]]
    rewards = zip(*([value for _, value in r["held_out"]] for r in rows), strict=True)
    return [(r, statistics.fmean(values)) for r, values in zip(at, rewards, strict=True)]


def write(options: argparse.Namespace, protocol: Protocol) -> None:
    rows = summary(options, protocol)
    shown = [k for k in rows[0] if k != "held_out"]
    table(shown, [[row[k] for k in shown] for row in rows])
    if options.dry:
        return
    name = "off_policy" if options.task == "quickstart" else f"off_policy_{options.task}"
    keep(name, {"protocol": str(protocol), "rates": options.rates, "rows": rows})
    series = [
        Series(
            label=f"{r['method']}, K = {r['staleness']}, lr {r['lr']:g}",
            points=[(float(at), value) for at, value in r["held_out"]],
            color=color,
        )
        for color, r in enumerate(rows)
    ]
    chart = Chart(
        series=series,
        x_label="rollouts trained",
        y_label="held-out reward (mean over seeds)",
        height=300,
        y_range=(0, 1),
    )
    title = f"Tokens exactly K policy versions old ({options.task})"
    (RESULTS / f"{name}.svg").write_text(picture(title, [chart]), encoding="utf-8")


def numbers(text: str) -> list[int]:
    """`1,2` or `1-3`."""
    if "-" in text:
        first, last = text.split("-")
        return list(range(int(first), int(last) + 1))
    return [int(n) for n in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--task", choices=list(TASKS), default="quickstart")
    parser.add_argument("--methods", type=lambda t: t.split(","), default=list(METHODS))
    parser.add_argument("--staleness", type=numbers, default=[0, 2, 4, 8, 16])
    parser.add_argument(
        "--rates",
        type=lambda t: [float(r) for r in t.split(",")],
        default=[1.75e-4, 3.5e-4, 7e-4, 1.4e-3],
    )
    parser.add_argument("--choosing-seeds", type=numbers, default=[1, 2, 3])
    parser.add_argument("--fresh-seeds", type=numbers, default=list(range(4, 14)))
    parser.add_argument("--rollouts", type=int, default=100)
    parser.add_argument("--eval-every", type=int, default=5)
    parser.add_argument("--hours", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument(
        "--side-by-side", type=int, default=1, help="runs at once; staleness and figures are theirs"
    )
    parser.add_argument("--model", type=Path, help="a warmed-up model's folder; default: made")
    parser.add_argument("--runs", type=Path, default=RUNS, help="the file of finished runs")
    parser.add_argument("--dry", action="store_true", help="table: keep nothing")
    options = parser.parse_args()
    options.model = options.model or warm_model(MODELS / options.task, TASKS[options.task])
    protocol = Protocol(
        model=digest(options.model),
        task=options.task,
        rollouts=options.rollouts,
        eval_every=options.eval_every,
    )
    run_all(options, protocol) if options.what == "run" else write(options, protocol)


if __name__ == "__main__":
    main()
