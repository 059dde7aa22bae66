"""Several machines in one: network namespaces joined by a bridge, with a raylet in each.

Every namespace has an address of its own, a loopback of its own, a /dev/shm of its own, and a link
that delays and limits what passes it, and that can be cut. Other files are shared with the host, as
on nodes with a common file system. Needs root, `ip` and `tc` of iproute2, and `nsenter` and
`unshare` of util-linux."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

NETWORK = "10.211.77"  # private addresses; one such network at a time
# 1 ms and 1 Gbit/s; the second for kernels that can limit but not delay. Without both: no limit
SHAPES = (
    ("netem", "delay", "1ms", "rate", "1gbit"),
    ("tbf", "rate", "1gbit", "burst", "256kb", "latency", "50ms"),
)
RAY_PORT = 6399
START_SECONDS = 120.0


def why_not() -> str | None:
    """Why there are no namespaces to be had here; None where there are."""
    lacking = [name for name in ("ip", "tc", "nsenter", "unshare") if shutil.which(name) is None]
    if lacking:
        return f"needs {', '.join(lacking)} (Debian: apt-get install iproute2 util-linux)"
    name = f"try{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"needs the right to make network namespaces (root): {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass(slots=True)
class Machine:
    """One namespace."""

    name: str
    address: str
    link: str  # the bridge's end of its cable
    folder: Path  # of its Ray
    keeper: subprocess.Popen[bytes] | None = None  # does nothing, and keeps the namespaces

    def command(self, *words: str) -> list[str]:
        """`words`, inside."""
        assert self.keeper is not None
        # a mount namespace is entered at its root
        go = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", str(Path.cwd())]
        return ["nsenter", f"--target={self.keeper.pid}", "--net", "--mount", "--", *go, *words]

    def cut(self) -> None:
        """Pulls the cable."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Plugs it in again."""
        _ip("link", "set", self.link, "up")

    def processes(self) -> list[psutil.Process]:
        """All that run inside, but for the keeper."""
        told = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        ).stdout.split()
        out = []
        for pid in map(int, told):
            with contextlib.suppress(psutil.Error):
                if self.keeper is None or pid != self.keeper.pid:
                    out.append(psutil.Process(pid))
        return out

    def die(self) -> None:
        """Everything inside ends at once, as when the power goes."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


class Network:
    """A bridge, and machines on it."""

    def __init__(self, number: int, shapes: Sequence[Sequence[str]] = SHAPES) -> None:
        """`shapes`: what tc makes of every machine's link; the first that this kernel has."""
        self._number, self._shapes = number, shapes
        self._tag = uuid.uuid4().hex[:4]
        self._bridge = f"ssbr{self._tag}"
        self.machines: list[Machine] = []

    def build(self) -> None:
        """Makes the network."""
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        for i in range(self._number):
            name, link = f"ss{self._tag}n{i}", f"ss{self._tag}v{i}"
            folder = Path(tempfile.mkdtemp(prefix=f"ssray{i}-"))
            address = f"{NETWORK}.{i + 1}"
            machine = Machine(name=name, address=address, link=link, folder=folder)
            self.machines.append(machine)
            self._wire(machine)

    def _wire(self, machine: Machine) -> None:
        name, link, address = machine.name, machine.link, machine.address
        _ip("netns", "add", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", self._bridge)
        _ip("link", "set", link, "up")
        for words in (
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *words)
        # exec of exec: the process that is known here is the one that keeps the namespaces
        keep = "mount -t tmpfs tmpfs /dev/shm && exec sleep infinity"
        machine.keeper = subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", keep]
        )
        while psutil.Process(machine.keeper.pid).name() != "sleep":
            assert machine.keeper.poll() is None, f"{name}: {keep} failed"
            time.sleep(0.01)
        for shape in self._shapes:
            done = subprocess.run(
                ["ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "eth0", "root", *shape],
                capture_output=True,
            )
            if done.returncode == 0:
                break

    def tear_down(self) -> None:
        """Everything ends, and the network is gone."""
        for machine in self.machines:
            machine.die()
        left = [p for machine in self.machines for p in machine.processes()]
        psutil.wait_procs(left, timeout=10)
        for machine in self.machines:
            if machine.keeper is not None:
                machine.keeper.kill()
                machine.keeper.wait()
            _ip("netns", "del", machine.name, check=False)
            for _ in range(50):
                shutil.rmtree(machine.folder, ignore_errors=True)
                if not machine.folder.exists():
                    break
                time.sleep(0.1)
        _ip("link", "del", self._bridge, check=False)


class Cluster(Network):
    """Machines with a Ray cluster over them: the first is its head."""

    def __init__(self, ray: Path, slots: Sequence[int], environment: dict[str, str]) -> None:
        """`ray`: the command. `slots`: how many logical devices every machine has."""
        super().__init__(len(slots))
        self._ray, self._slots = ray, slots
        self.environment = environment

    @property
    def address(self) -> str:
        """Of the Ray cluster."""
        return f"{self.machines[0].address}:{RAY_PORT}"

    def build(self) -> None:
        """Makes the network, and starts Ray on every machine."""
        super().build()
        for i in range(len(self.machines)):
            self.start_ray(i)

    def start_ray(self, i: int) -> None:
        """Starts Ray on a machine, and returns when it has joined."""
        machine = self.machines[i]
        where = (
            ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
            if i == 0
            else [f"--address={self.address}"]
        )
        words = [
            str(self._ray),
            "start",
            *where,
            f"--node-ip-address={machine.address}",
            f"--num-cpus={self._slots[i]}",
            "--num-gpus=0",
            f"--object-store-memory={128 << 20}",
            *([f"--temp-dir={machine.folder}"]),
            "--disable-usage-stats",
        ]
        done = subprocess.run(
            machine.command(*words),
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            env=self.environment,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}")


@contextlib.contextmanager
def network(number: int, *shape: str) -> Iterator[Network]:
    """So many machines, and what tc makes of their links. Raises RuntimeError where this kernel has
    no such shape."""
    made = Network(number, [shape] if shape else [])
    try:
        made.build()
        for machine in made.machines if shape else ():
            _run(*machine.command("tc", "qdisc", "replace", "dev", "eth0", "root", *shape))
        yield made
    finally:
        made.tear_down()


@contextlib.contextmanager
def cluster(ray: Path, *slots: int) -> Iterator[Cluster]:
    """One machine for every number of slots."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    made = Cluster(
        ray,
        slots,
        {
            **kept,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2,
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "5",
            "RAY_enable_metrics_collection": "0",
        },
    )
    try:
        made.build()
        yield made
    finally:
        made.tear_down()


def _ip(*words: str, check: bool = True) -> None:
    _run("ip", *words, check=check)


def _run(*words: str, check: bool = True) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
