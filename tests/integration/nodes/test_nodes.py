"""A run over several machines: driver and learner on one, engines on others, over links that can be
cut; and machines that die."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ROOT, entry_command, read_metrics
from tests.integration.nodes import namespaces
from tests.integration.nodes.namespaces import Cluster, Machine

REASON = namespaces.why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]
RAY = Path(sys.executable).with_name("ray")
SHORT = (
    "--config",
    "quickstart",
    "--sft-steps",
    "2",
    "--rollout-batch-size",
    "4",
    "--n-samples-per-prompt",
    "4",
    "--eval-interval",
    "0",
)
RUN_SECONDS = 240.0


class Job:
    """A run whose driver is on a machine."""

    def __init__(self, cluster: Cluster, machine: Machine, folder: Path, *flags: str) -> None:
        self.folder = folder / "run"
        self._out = (folder / "out.txt").open("w+")
        self.process = subprocess.Popen(
            machine.command(
                *entry_command(
                    *SHORT,
                    *flags,
                    *("--ray-address", cluster.address),
                    *("--runs-dir", str(folder), "--name", "run"),
                )
            ),
            cwd=ROOT,
            env={**cluster.environment, "HF_HUB_OFFLINE": "1"},
            stdout=self._out,
            stderr=subprocess.STDOUT,
        )

    def told(self) -> str:
        self._out.flush()
        return Path(self._out.name).read_text()

    def wait_for(self, what: Callable[[], Any]) -> Any:
        """Looks until it is so; a run that ends first has failed."""
        until = time.monotonic() + RUN_SECONDS
        while not (found := what()):
            assert self.process.poll() is None, self.told()
            assert time.monotonic() < until, f"{self.told()}\n{self.log()[-5000:]}"
            time.sleep(0.2)
        return found

    def end(self) -> list[dict[str, Any]]:
        """Its train rows, when it has ended well."""
        code = self.process.wait(RUN_SECONDS)
        assert code == 0, f"{self.told()}\n{self.log()[-5000:]}"
        return read_metrics(self.folder, "train")

    def log(self) -> str:
        path = self.folder / "run.log"
        return path.read_text() if path.exists() else ""

    def num_trained(self) -> int:
        try:
            return len(read_metrics(self.folder, "train"))
        except (OSError, ValueError):  # not there yet, or a line half written
            return 0

    def train_some(self) -> None:
        """Returns when two more rollouts are trained on: one of them was generated from now on."""
        enough = self.num_trained() + 2
        self.wait_for(lambda: self.num_trained() >= enough)

    def engine_rows(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.folder, "engine")
        except (OSError, ValueError):
            return []

    def num_serving(self, machine: Machine) -> int:
        """Engines that serve on a machine, by the records."""
        serving: set[str] = set()
        for row in self.engine_rows():
            if row.get("event") in ("start", "restart"):
                serving.add(row["engine"])
            elif row.get("event") in ("death", "lost"):
                serving.discard(row["engine"])
        return sum(f"//{machine.address}:" in endpoint for endpoint in serving)

    def interrupted(self) -> list[dict[str, Any]]:
        """Its train rows, when it has ended well after a SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(RUN_SECONDS) == 128 + signal.SIGTERM, self.told()
        return read_metrics(self.folder, "train")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._out.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def begin(cluster: Cluster, *flags: str) -> Job:
        jobs.append(Job(cluster, cluster.machines[0], tmp_path, *flags))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.stop()


def engines_of(machine: Machine) -> list[psutil.Process]:
    return [p for p in machine.processes() if "sglang.launch_server" in " ".join(p.cmdline())]


def ranks_of(machine: Machine) -> list[psutil.Process]:
    return [p for p in machine.processes() if "ray::RankActor" in " ".join(p.cmdline())]


def addresses(job: Job) -> set[str]:
    """Of the engines, by the records."""
    rows = [r for r in read_metrics(job.folder, "engine") if r.get("event") == "start"]
    return {str(row["engine"]).removeprefix("http://").partition(":")[0] for row in rows}


def test_engines_on_other_machines_which_die_and_come_back(start: Callable[..., Job]) -> None:
    """The learner beside the driver, an engine on each of two others. One of these loses power, and
    its engine finds room on the other; it comes back, and when the other loses power too, it has
    room for one of the two engines; the run goes on smaller, until the other is back as well."""
    with namespaces.cluster(RAY, 1, 1, 2) as cluster:
        head, second, third = cluster.machines
        job = start(
            cluster, "--rollout-num-gpus", "2", "--num-rollout", "10000", "--engine-restarts", "6"
        )
        job.wait_for(lambda: job.num_trained() >= 2)
        assert addresses(job) == {second.address, third.address}
        assert engines_of(second) and engines_of(third) and not engines_of(head)

        second.die()
        job.wait_for(lambda: job.num_serving(third) == 2)
        job.train_some()

        cluster.start_ray(1)
        third.die()
        job.wait_for(lambda: job.num_serving(second) == 1)
        job.wait_for(lambda: any(row.get("event") == "no_room" for row in job.engine_rows()))
        job.train_some()
        assert not engines_of(third)

        cluster.start_ray(2)
        job.wait_for(lambda: job.num_serving(third) == 1)
        job.train_some()
        rows = job.interrupted()
        assert not engines_of(second) and not engines_of(third)
    versions = [row["policy_version"] for row in rows]
    assert [row["rollout_id"] for row in rows] == list(range(len(rows)))
    assert versions == sorted(versions)
    audit = subprocess.run(
        [sys.executable, "-m", "pipeline", "buffer", str(job.folder), "audit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_cable_is_pulled_and_plugged_in_again(start: Callable[..., Job]) -> None:
    with namespaces.cluster(RAY, 1, 1, 1) as cluster:
        _, second, third = cluster.machines
        job = start(cluster, "--rollout-num-gpus", "2", "--num-rollout", "30")
        job.wait_for(lambda: job.num_trained() >= 2)
        second.cut()
        before = job.num_trained()
        job.wait_for(lambda: job.num_trained() >= before + 3)
        second.join()
        rows = job.end()
        assert not engines_of(third)
    assert [row["rollout_id"] for row in rows] == list(range(30))


def test_a_learner_over_two_machines_and_an_engine_over_two(start: Callable[..., Job]) -> None:
    """Two ranks of data parallelism on two nodes, and one engine of two tensor-parallel ranks on
    two nodes."""
    with namespaces.cluster(RAY, 2, 2) as cluster:
        job = start(
            cluster,
            *("--actor-num-nodes", "2"),
            *("--rollout-num-gpus", "2", "--rollout-num-gpus-per-engine", "2"),
            *("--num-rollout", "3", "--sft-steps", "0", "--check-weight-update-equal"),
        )
        job.wait_for(lambda: job.num_trained() >= 1)
        assert all(engines_of(machine) for machine in cluster.machines)
        assert all(ranks_of(machine) for machine in cluster.machines)
        rows = job.end()
    assert len(rows) == 3
    # what the engine's two ranks sampled with is what the learner's two ranks hold
    assert all(row["train_rollout_logprob_abs_diff_max"] < 1e-4 for row in rows)


def test_what_the_cluster_has_not_is_refused_with_its_nodes(start: Callable[..., Job]) -> None:
    with namespaces.cluster(RAY, 1, 1) as cluster:
        job = start(cluster, "--rollout-num-gpus", "4", "--num-rollout", "1")
        assert job.process.wait(RUN_SECONDS) != 0
        said = job.told()
        assert "the run does not fit: 5 devices were asked for" in said
        for machine in cluster.machines:
            assert machine.address in said
        assert not any(engines_of(machine) for machine in cluster.machines)
