"""Throw random faults at one real run, and look at its account in the end: nothing lost, nothing
trained twice, nothing left behind.

    python -m tests.chaos.real_faults [--faults 30] [--seed 0] [any flag of train_async.py]

SGLang engines in Ray actors, rollout workers and a Megatron learner on this machine. Engines,
their hosts, rollout workers and the learner's rank are killed (-9) or stopped for a while, engines
are drained and added; each time the run has recovered the next one comes, at a random moment. Then
SIGTERM ends the run. Prints one line a fault and a table; exits 1 unless all holds. The driver's
own deaths are for tests/chaos/chaos.py."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from buffers.journal import FILE_NAME, read_journal
from buffers.ledger import Ledger
from pipeline.run.pool_channel import ask
from pipeline.run.record_file import current_records
from tests.chaos.victims import Victims
from tests.conftest import ROOT, entry_command, read_metrics, run_module
from tests.shared_memory import SharedMemoryWatch

ENGINES = WORKERS = 2
FLAGS = (
    *("--config", str(ROOT / "configs" / "presets" / "quickstart.yaml"), "--sft-steps", "2"),
    *("--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--num-rollout", "100000"),
    *("--eval-interval", "1000000", "--save-interval", "10", "--keep-trajectories"),
    *("--rollout-num-gpus", str(ENGINES), "--num-rollout-workers", str(WORKERS)),
    *("--engine-restarts", "1000", "--rollout-worker-restarts", "1000"),
    *("--use-fault-tolerance", "--learner-restarts", "1000"),
    *("--generate-timeout-seconds", "8"),
)
PAUSE_SECONDS = 3.0  # at most, between a recovery and the next fault
ROWS = 2  # rollouts that are trained after a recovery, before the next fault
RECOVERY_SECONDS = 300.0


class FaultyRun:
    """One run, and what is done to it."""

    def __init__(
        self, folder: Path, rng: random.Random, longest_stop: float, more: Sequence[str]
    ) -> None:
        self.run, self._rng, self._longest_stop = folder / "r", rng, longest_stop
        (folder / "t").mkdir()  # whatever it makes there and does not remove is found
        flags = (*FLAGS, *more, "--runs-dir", str(folder), "--name", "r")
        self._output = folder / "output.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                entry_command(*flags),
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "TMPDIR": str(folder / "t"),
                    "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
                },
            )
        self.victims = Victims(self.process.pid)
        self._faults: dict[str, Callable[[], Callable[[], bool]]] = {
            "kill an engine's server": lambda: self._kill_of_engine(self.victims.servers()),
            "kill an engine's scheduler": lambda: self._kill_of_engine(self.victims.schedulers()),
            "kill an engine's host": lambda: self._kill_of_engine(self.victims.hosts()),
            "kill a rollout worker": self._kill_worker,
            "kill the learner's rank": self._kill_rank,
            "stop the learner's rank": lambda: self._stop(self.victims.ranks()),
            "stop an engine's server": lambda: self._stop(self.victims.servers()),
            "stop an engine's host": lambda: self._stop(self.victims.hosts()),
            "stop an engine's scheduler": lambda: self._stop(self.victims.schedulers()),
            "stop a rollout worker": lambda: self._stop(self.victims.workers()),
            "add and drain an engine": self._add_and_drain,
        }

    def kinds(self, count: int) -> list[str]:
        """Every kind before one comes again."""
        chosen: list[str] = []
        while len(chosen) < count:
            chosen += self._rng.sample(sorted(self._faults), len(self._faults))
        return chosen[:count]

    def hit(self, kind: str) -> float:
        """One fault. Returns the seconds until all engines and workers are there again and a
        rollout has been trained after that."""
        time.sleep(self._rng.uniform(0, PAUSE_SECONDS))
        began = time.monotonic()
        is_over = self._faults[kind]()
        self._until(lambda: is_over() and self._is_whole(), kind)
        rows = self.trained()
        self._until(lambda: self.trained() > rows, kind)
        seconds = time.monotonic() - began
        self._until(lambda: self.trained() >= rows + ROWS, kind)
        return seconds

    def wait_until_trained(self, count: int) -> None:
        self._until(lambda: self.trained() >= count, "the start")

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=180)

    def abandon(self) -> None:
        """After a failure: everything that it has started is ended."""
        self.victims.look()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in self.victims.alive():
            process.kill()

    def trained(self) -> int:
        return len(read_metrics(self.run, "train")) if self._metrics.exists() else 0

    # ---- faults: each returns what tells that its consequences are over

    def _kill_of_engine(self, of: list[psutil.Process]) -> Callable[[], bool]:
        back = self._num_restarts()
        self._rng.choice(of).kill()
        return lambda: self._num_restarts() > back

    def _kill_worker(self) -> Callable[[], bool]:
        back = self._num_workers_back()
        self._rng.choice(self.victims.workers()).kill()
        return lambda: self._num_workers_back() > back

    def _kill_rank(self) -> Callable[[], bool]:
        back = self._num_restores()
        self._rng.choice(self.victims.ranks()).kill()
        return lambda: self._num_restores() > back

    def _stop(self, of: list[psutil.Process]) -> Callable[[], bool]:
        seconds = self._rng.uniform(self._longest_stop / 3, self._longest_stop)
        victim, until = self._rng.choice(of), time.monotonic() + seconds
        victim.suspend()
        while victim.is_running() and time.monotonic() < until:
            time.sleep(0.1)
            self.victims.look()
        if victim.is_running():
            victim.resume()
        return lambda: True

    def _add_and_drain(self) -> Callable[[], bool]:
        gone = self._rng.choice([row["engine"] for row in self._engines()])
        steps = [["add"], ["drain", gone, *self._rng.choice([[], ["--now"]])]]
        self._rng.shuffle(steps)
        for words in steps:
            done = run_module("pipeline", "pool", str(self.run), *words, timeout=RECOVERY_SECONDS)
            if done.returncode:
                raise RuntimeError(f"pool {words}: {done.stdout}{done.stderr}{self._last_words()}")
        return lambda: gone not in [row["engine"] for row in self._engines()]

    # ---- how it is

    def _is_whole(self) -> bool:
        states = [row["state"] for row in self._engines()]
        return len(states) == ENGINES and set(states) <= {"serving", "push"}

    def _engines(self) -> list[dict[str, Any]]:
        *_, answer = ask(self.run, {"do": "list"})
        return list(answer["engines"])

    def _num_restarts(self) -> int:
        return sum(row["event"] == "restart" for row in read_metrics(self.run, "engine"))

    def _num_restores(self) -> int:
        return sum(row["event"] == "restore" for row in read_metrics(self.run, "learner"))

    def _num_workers_back(self) -> int:
        return (self.run / "run.log").read_text().count(" is back (pid ")

    @property
    def _metrics(self) -> Path:
        return self.run / "metrics.jsonl"

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        late = time.monotonic() + RECOVERY_SECONDS
        while not condition():
            if (status := self.process.poll()) is not None:
                raise RuntimeError(f"{what}: the run ended with {status}.{self._last_words()}")
            if time.monotonic() > late:
                raise RuntimeError(f"{what}: no recovery.{self._last_words()}")
            self.victims.look()
            time.sleep(0.1)

    def _last_words(self) -> str:
        return f" It said:\n{self._output.read_text()[-6000:]}"


def real_faults(
    *,
    faults: int,
    seed: int,
    longest_stop: float = 30.0,
    more: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Returns {"seconds": kind -> seconds to recover of each, "rollouts", "problems"}.

    `longest_stop`: a stopped process stands still at most so many seconds, and at least a third."""
    # a short name: Ray's sockets lie below, and the kernel takes 107 characters
    folder = Path(tempfile.mkdtemp(prefix="c-"))
    watch = SharedMemoryWatch()
    watch.start()
    seconds: dict[str, list[float]] = defaultdict(list)
    faulty = FaultyRun(folder, random.Random(seed), longest_stop, more)
    try:
        faulty.wait_until_trained(2)
        for number, kind in enumerate(faulty.kinds(faults), 1):
            seconds[kind].append(faulty.hit(kind))
            say(f"{number:3} {kind}: {seconds[kind][-1]:.1f} s, {faulty.trained()} rollouts")
        status = faulty.end()
        found = [] if status == 128 + signal.SIGTERM else [f"exit status {status}"]
        found += problems(faulty.run)
        found += [f"process left behind: {p}" for p in faulty.victims.alive()]
        found += [f"left behind: {path}" for path in sorted((folder / "t").iterdir())]
        found += [f"shared memory left behind: {path}" for path in watch.end()]
        return {"seconds": dict(seconds), "rollouts": faulty.trained(), "problems": found}
    finally:
        faulty.abandon()
        watch.end()
        shutil.rmtree(folder, ignore_errors=True)


def problems(run: Path) -> list[str]:
    """What does not hold in its account."""
    entries, _ = read_journal(run / "buffer" / FILE_NAME)
    totals, found = Ledger(entries).totals(), []
    if totals["lost"] or totals["duplicated"]:
        found.append(f"lost {totals['lost']}, duplicated {totals['duplicated']}")
    pushes = [entry["v"] for entry in entries if entry["t"] == "push"]
    if pushes != sorted(set(pushes)):
        found.append(f"version numbers went back or were used twice: {pushes}")
    train = [r for r in current_records(read_metrics(run)) if r["kind"] == "train"]
    if (rollouts := [row["rollout_id"] for row in train]) != list(range(len(train))):
        found.append(f"rollouts are not in order: {rollouts}")
    versions = [row["policy_version"] for row in train]
    if versions != sorted(versions):
        found.append(f"trained at versions {versions}")
    if totals["trained"] != 4 * len(train):
        found.append(f"{totals['trained']} groups trained in {len(train)} rollouts of 4")
    # those that were there when the learner was lost may be staler
    stale = [
        row["rollout_id"]
        for row in train
        if row["num_groups_beyond_bound"] > row["num_groups_beyond_bound_recalled"]
        or (row["staleness_max"] > row["staleness_bound"] and not row["num_groups_beyond_bound"])
    ]
    if stale:
        found.append(f"rollouts {stale} are staler than the bound")
    audit = run_module("pipeline", "buffer", str(run), "audit", timeout=300)
    if audit.returncode:
        found.append(f"audit: {audit.stdout[-2000:]}{audit.stderr[-2000:]}")
    return found


def table(seconds: dict[str, list[float]]) -> str:
    head = f"{'fault':28} {'how many':>8} {'median s to recover':>20} {'longest':>8}"
    rows = [
        f"{kind:28} {len(all_of):8} {statistics.median(all_of):20.1f} {max(all_of):8.1f}"
        for kind, all_of in sorted(seconds.items())
    ]
    return "\n".join([head, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options, more = parser.parse_known_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the run is ended then, too

    def say(line: str) -> None:
        print(line, flush=True)

    found = real_faults(faults=options.faults, seed=options.seed, more=more, say=say)
    print(table(found["seconds"]))
    rest = {key: value for key, value in found.items() if key != "seconds"}
    print(json.dumps({**rest, "seconds": round(time.monotonic() - began)}))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
