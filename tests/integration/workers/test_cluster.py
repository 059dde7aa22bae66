"""Learner ranks as Ray actors: they train as one process does, refusals and deaths are told apart,
nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch

from pipeline.core.errors import CheckpointError, LearnerError
from pipeline.core.ports import free_port
from pipeline.run.disk_full import is_disk_full
from pipeline.workers.learner_group import LearnerGroup
from tests.conftest import ROOT
from tests.integration.learn import learner_cases as cases
from tests.unit.stages.publish.gloo_peer import peer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.make_model("qwen3", tmp_path_factory.mktemp("model") / "qwen3", tied=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(model: Path) -> AsyncIterator[LearnerGroup]:
    group = LearnerGroup(cases.settings(model, ranks=2, use_tis=True))
    await group.start()
    yield group
    await group.close()


def steps(ranks: int) -> list[Any]:
    return [cases.make_step(part, ranks=ranks, micro_batches=2) for part in cases.halves()]


def children_named(*names: str) -> list[psutil.Process]:
    return [
        p
        for p in psutil.Process().children(recursive=True)
        if any(n in " ".join(p.cmdline()) for n in names)
    ]


async def test_two_actors_train_as_one_process(
    model: Path, group: LearnerGroup, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from stages.learn.megatron import start_rank

    rank = start_rank(cases.settings(model, use_tis=True))
    want = [cases.step(rank, cases.make_batch(*steps(1), rollout_id=i)) for i in range(2)]
    weights = cases.weights_of(rank)
    rank.close()
    for i in range(2):
        got = (await group.step(cases.make_batch(*steps(2), rollout_id=i))).metrics
        for name in want[i].keys() - cases.MEASURED:
            assert got[name] == pytest.approx(want[i][name], rel=1e-4, abs=1e-5), name
    await group.export_hf(tmp_path / "hf")
    exported = load_file(tmp_path / "hf" / "model.safetensors")
    moved = torch.cat([(exported[n] - weights[n]).flatten() for n in weights])
    assert moved.square().mean().sqrt() < 1e-5


async def test_the_event_loop_is_free_during_a_step(group: LearnerGroup) -> None:
    task = asyncio.create_task(group.step(cases.make_batch(*steps(2))))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert task.exception() is None


async def test_a_push_is_sent_while_a_step_is_taken(group: LearnerGroup) -> None:
    """What was called first is served last: the ranks have another thread for pushes. What is sent
    is what was prepared, not what the step makes of it."""
    metas = (await group.prepare(1 << 30, None)).buckets[0]
    num_bytes = sum(4 * math.prod(shape) for bucket in metas for _, _, shape in bucket)
    engine = peer(port := free_port(), rounds=2, num_bytes=num_bytes)
    await group.join(0, "g", "127.0.0.1", port, 2, "gloo")
    await group.broadcast(0, "g", 0)
    step = asyncio.create_task(group.step(cases.make_batch(*steps(2) * 20)))
    await asyncio.wait({step}, timeout=0.5)  # it has begun
    await group.broadcast(0, "g", 0)
    assert not step.done()
    await step
    await group.leave(0, "g")
    said = (await asyncio.to_thread(engine.communicate, timeout=60))[0].splitlines()
    assert len(said) == 2 and said[0] == said[1]


async def test_refusal_leaves_all_ranks_usable(group: LearnerGroup, tmp_path: Path) -> None:
    await group.save(tmp_path / "before", tmp_path / "before" / "hf")
    bad = cases.make_batch(cases.make_step(cases.poisoned(), ranks=2), rollout_id=9)
    with pytest.raises(LearnerError, match=r"rollout 9.*refused"):
        await group.step(bad)
    await group.save(tmp_path / "after", tmp_path / "after" / "hf")
    first, second = (
        (tmp_path / x / "hf" / "model.safetensors").read_bytes() for x in ("before", "after")
    )
    assert first == second
    assert (await group.step(cases.make_batch(*steps(2)))).metrics["grad_norm"] > 0


async def test_save_load_and_bad_folder(group: LearnerGroup, tmp_path: Path) -> None:
    await group.save(tmp_path / "1", tmp_path / "1" / "hf")
    want = (await group.step(cases.make_batch(*steps(2)))).metrics
    with pytest.raises(CheckpointError, match="nowhere"):
        await group.load(tmp_path / "nowhere")
    await group.load(tmp_path / "1")
    got = (await group.step(cases.make_batch(*steps(2)))).metrics
    assert {k: v for k, v in got.items() if k not in cases.MEASURED} == {
        k: v for k, v in want.items() if k not in cases.MEASURED
    }


async def test_prepare_names_every_tensor_once(model: Path, group: LearnerGroup) -> None:
    """What a push would send; that it arrives is tested with real engines
    (test_numerical_truth)."""
    buckets = (await group.prepare(64 << 10, None)).buckets[0]
    assert len(buckets) > 1
    named = {name: (dtype, tuple(shape)) for bucket in buckets for name, dtype, shape in bucket}
    assert sum(len(bucket) for bucket in buckets) == len(named)
    assert named == {
        n: ("float32", tuple(p.shape)) for n, p in cases.load_hf(model).named_parameters()
    }


async def test_everything_listens_on_loopback_only(group: LearnerGroup) -> None:
    ours = children_named("ray", "gcs_server")
    open_to = {
        c.laddr.ip
        for p in ours
        for c in p.net_connections(kind="inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert open_to and open_to <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


async def test_a_dead_rank_is_reported_and_nothing_is_left(group: LearnerGroup) -> None:
    """The last test of this group: it does not survive."""
    folder = group._pools.cluster.folder
    assert folder is not None and folder.is_dir()
    os.kill(group._seats[1].pid, signal.SIGKILL)
    try:
        with pytest.raises(LearnerError, match=r"learner rank 1 \(pid \d+\) died"):
            await group.step(cases.make_batch(*steps(2)))
        with pytest.raises(LearnerError, match="rank 1 failed earlier"):
            await group.save(Path("anywhere"), None)
    finally:  # Ray runs once a process, and the next tests start it
        await group.close()
    await group.close()
    assert not folder.exists()
    assert children_named("ray::", "raylet", "gcs_server") == []


async def test_start_fails_with_the_cause(tmp_path: Path) -> None:
    group = LearnerGroup(cases.settings(tmp_path / "none"))
    with pytest.raises(CheckpointError, match=r"none.*config\.json"):
        await group.start()
    assert children_named("ray::", "raylet", "gcs_server") == []


async def test_a_full_disk_on_a_rank_is_known_to_be_one(model: Path) -> None:
    class TaskError(Exception):  # as Ray hands it over
        cause = OSError(errno.ENOSPC, "No space left on device", "weights")

    told = await LearnerGroup(cases.settings(model))._explain(0, TaskError(), [])
    assert isinstance(told, LearnerError) and is_disk_full(told)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of this test's processes. Its name is short: sockets lie in it."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


def names_in(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(file.name for file in folder.glob(pattern))


async def test_a_start_that_is_stopped_leaves_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    """Ray is half up then, and goes on in a thread."""
    import ray

    loop, begun, init = asyncio.get_running_loop(), asyncio.Event(), ray.init

    def told(**options: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        return init(**options)

    monkeypatch.setattr(ray, "init", told)
    starting = asyncio.ensure_future(LearnerGroup(cases.settings(model)).start())
    await begun.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert names_in(temporary) == []
    assert children_named("ray::", "raylet", "gcs_server") == []


async def test_nothing_that_ranks_import_leaves_a_folder_behind(
    model: Path, temporary: Path
) -> None:
    group = LearnerGroup(cases.settings(model))
    await group.start()
    assert names_in(temporary, "slipstream-*/tmp/*wandb-media"), "Megatron imports W&B"
    await group.close()
    assert names_in(temporary) == []


SIGTERM = """
import asyncio, os, signal, sys
from pathlib import Path
from pipeline.run.disk_full import is_disk_full
from pipeline.workers.learner_group import LearnerGroup
from tests.integration.learn import learner_cases as cases
from tests.unit.stages.publish.gloo_peer import peer

async def main():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    group = LearnerGroup(cases.settings(Path(sys.argv[1])))
    await group.start()
    os.kill(os.getpid(), signal.SIGTERM)
    await told.wait()
    print(f"{signal.alarm(0)} seconds left", flush=True)
    await group.close()

import uvloop
uvloop.run(main())
"""


async def test_sigterm_is_ours_to_handle(model: Path, temporary: Path) -> None:
    """Ray would abort the process some seconds later: in the middle of a save, or of closing."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", SIGTERM, str(model)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "0 seconds left\n"), done.stderr
    assert "SIGTERM received" not in done.stderr
    assert names_in(temporary) == []


IMPORTED_BEFORE = """
import ray  # as a user's file may
from pipeline.workers.ray_cluster import RayCluster

cluster = RayCluster(None, devices=1, on_gpu=False, object_store_bytes=100 << 20)
cluster.start()
print([node["NodeManagerAddress"] for node in ray.nodes()], flush=True)
cluster.stop([])
"""


async def test_ray_may_have_been_imported_before(temporary: Path) -> None:
    """It reads its environment then: that it is to ask for a token, and to stay on loopback."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", IMPORTED_BEFORE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "['127.0.0.1']\n"), done.stderr
    assert names_in(temporary) == []


KILL_NOW = """
import asyncio, os, sys
from pathlib import Path
from pipeline.run.disk_full import is_disk_full
from pipeline.workers.learner_group import LearnerGroup
from tests.integration.learn import learner_cases as cases
from tests.unit.stages.publish.gloo_peer import peer

async def main():
    group = LearnerGroup(cases.settings(Path(sys.argv[1])))
    await group.start()
    import psutil
    pids = [p.pid for p in psutil.Process().children(recursive=True)]
    print(*pids, group._pools.cluster.folder, flush=True)
    group.kill_now()
    os._exit(0)

asyncio.run(main())
"""


async def test_kill_now_is_clean(model: Path) -> None:
    def run() -> tuple[str, list[int]]:
        out = subprocess.run(
            [sys.executable, "-c", KILL_NOW, str(model)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        *pids, folder = out.split()
        psutil.wait_procs(
            [psutil.Process(int(p)) for p in pids if psutil.pid_exists(int(p))], timeout=10
        )
        left = [
            p.pid
            for p in psutil.process_iter(["cmdline", "status"])
            if folder in " ".join(p.info["cmdline"] or [])
        ]
        return folder, left + [int(p) for p in pids if psutil.pid_exists(int(p))]

    folder, left = await asyncio.to_thread(run)
    assert left == []
    assert not os.path.exists(folder)  # noqa: ASYNC240, PTH110
