"""Kill a run with -9 at random instants, resume it, and look at its account in the end: nothing
lost, nothing trained twice.

    python -m tests.chaos.chaos --kills 200 [--real] [--seed 0] [any flag of train_async.py]

Every life of the run is killed after a random while (one in four while it starts): the driver, or
one of its children (an engine, a learner rank, a scorer), or all at once. After enough kills the
run may end. Prints one line a life, then the ledger's totals; exits 1 unless they hold."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from tests.conftest import ROOT, entry_command
from tests.shared_memory import SharedMemoryWatch

MOCK = (
    "--mock",
    "--rollout-batch-size",
    "4",
    "--n-samples-per-prompt",
    "2",
    "--async-buffer-size",
    "2",
    "--save-interval",
    "3",
    "--mock-step-seconds",
    "0.05",
    "--mock-seconds-per-token",
    "0.0005",
    "--mock-failure-rate",
    "0.02",
)
REAL = (
    "--config",
    str(ROOT / "configs" / "presets" / "quickstart.yaml"),
    "--sft-steps",
    "3",
    "--rollout-batch-size",
    "4",
    "--n-samples-per-prompt",
    "4",
    "--eval-interval",
    "1000000",
    "--save-interval",
    "4",
)


def chaos(
    folder: Path,
    *,
    kills: int,
    real: bool,
    seed: int,
    num_rollout: int,
    more: Sequence[str] = (),
    say: Any = print,
) -> dict[str, Any]:
    """Returns the ledger's totals with `kills` and `problems` (empty when all holds)."""
    rng = random.Random(seed)
    run = folder / "chaos"
    flags = (
        *(REAL if real else MOCK),
        *more,
        "--num-rollout",
        str(num_rollout),
        "--runs-dir",
        str(folder),
        "--name",
        "chaos",
    )
    done, watch = 0, SharedMemoryWatch()
    watch.start()
    while True:
        journal = run / "buffer" / FILE_NAME
        if not journal.exists():  # killed before it had promised anything
            shutil.rmtree(run, ignore_errors=True)
        load = ("--load", str(run)) if journal.exists() else ()
        process = subprocess.Popen(
            entry_command(*flags, *load),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        victim = _kill_somebody(process, rng, 60.0 if real else 2.0, run) if done < kills else None
        _, err = process.communicate(timeout=900)
        if victim is not None:
            done += 1
            say(f"life {done}: killed {victim}, {_trained(run)} rollouts in metrics.jsonl")
            _end_orphans(run)
        elif process.returncode == 0:
            break
        elif done >= kills:
            raise RuntimeError(f"the run ended with {process.returncode}: {err[-3000:]}")
        elif process.returncode not in (0, 1):
            raise RuntimeError(f"a life ended with {process.returncode} unkilled: {err[-3000:]}")
    # semaphores of killed processes, which nobody else can remove
    for left in watch.end():
        left.unlink(missing_ok=True)
    entries, _ = read_journal(run / "buffer" / FILE_NAME)
    return {
        **Ledger(entries).totals(),
        "kills": done,
        "problems": problems(
            run, entries, num_rollout, fresh=2 if "--max-times-sampled" in more else 4
        ),
    }


def problems(run: Path, entries: list[dict[str, Any]], num_rollout: int, fresh: int) -> list[str]:
    """What does not hold."""
    ledger = Ledger(entries)
    totals, found = ledger.totals(), []
    if totals["lost"] or totals["duplicated"]:
        found.append(f"lost {totals['lost']}, duplicated {totals['duplicated']}")
    if totals["trained"] != num_rollout * fresh:
        found.append(f"{totals['trained']} groups trained, expected {num_rollout * fresh}")
    rollouts = sorted({r for a in ledger.accounts.values() for r, _ in a.consumed})
    if rollouts != list(range(num_rollout)):
        found.append(f"rollouts consumed: {rollouts}")
    twice = [g for g, a in ledger.accounts.items() if a.times_put > 1]
    if twice:
        found.append(f"groups {twice} were generated again although they were complete")
    prompts = [a.prompt_index for a in ledger.accounts.values() if a.consumed]
    if len(set(prompts)) != len(prompts):
        found.append("a prompt was trained on under two groups")
    answered = {a.prompt_index for a in ledger.accounts.values()}
    if answered != set(range(len(answered))):
        found.append("a prompt was skipped")
    pushes = [r["v"] for r in entries if r["t"] == "push"]
    if pushes != sorted(set(pushes)):
        found.append(f"version numbers went back or were used twice: {pushes}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    versions = [r["policy_version"] for r in rows if r["kind"] == "train"]
    if versions != sorted(versions) or [
        r["rollout_id"] for r in rows if r["kind"] == "train"
    ] != list(range(num_rollout)):
        found.append(f"metrics: versions {versions}")
    return found


def _kill_somebody(
    process: subprocess.Popen[str], rng: random.Random, longest: float, run: Path
) -> str | None:
    """After a random while: one time in four of its start, else of the first change it makes to the
    journal, however slow the machine. None when the run ended before."""
    journal = run / "buffer" / FILE_NAME
    before = _size(journal)
    early = rng.random() < 0.25
    while not early and process.poll() is None and _size(journal) == before:
        time.sleep(0.01)
    try:
        process.wait(timeout=rng.uniform(0.1, longest))
        return None
    except subprocess.TimeoutExpired:
        pass
    driver = psutil.Process(process.pid)
    children = driver.children(recursive=True)
    choice = rng.random()
    if choice < 0.5 or not children:
        victims, name = [driver], "the driver"
    elif choice < 0.75:
        victims, name = [driver, *children], "everything"
    else:
        child = rng.choice(children)
        victims, name = [child, driver], f"{_name(child)}, then the driver"
    for victim in victims:
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
    for child in children:  # what the driver can no longer end
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=30)
    return name


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else -1


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "a child"


def _end_orphans(run: Path) -> None:
    """Processes that the killed driver had started and that lived in sessions of their own: they
    name the run's folder."""
    for process in psutil.process_iter():
        try:
            if str(run) in " ".join(process.cmdline()) and process.ppid() == 1:
                process.kill()
        except psutil.Error:
            continue


def _trained(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return (
        sum('"kind": "train"' in line for line in metrics.read_text().splitlines())
        if metrics.exists()
        else 0
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--real", action="store_true", help="SGLang and Megatron instead of the simulated parts"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-rollout", type=int)
    options, more = parser.parse_known_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slipstream-chaos-") as folder:
        num_rollout = options.num_rollout or (12 if options.real else 15 * options.kills)
        found = chaos(
            Path(folder),
            kills=options.kills,
            real=options.real,
            seed=options.seed,
            num_rollout=num_rollout,
            more=more,
        )
    print(json.dumps({**found, "seconds": round(time.monotonic() - began)}))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
