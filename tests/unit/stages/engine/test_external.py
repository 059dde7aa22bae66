"""Servers that somebody else runs: taken, given back, never started or ended."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import ClusterConfig
from pipeline.core.engine_auth import engine_headers
from pipeline.core.errors import EngineError
from pipeline.core.ports import free_port
from stages.engine.external import ExternalEngine
from stages.engine.external_fit import ExternalFit
from stages.engine.memory import EngineMemory
from stages.engine.pool import SGLangPool
from stages.publish.disk import DiskTransport
from tests.unit.fake_sglang import FakeSGLang

TAKEN = ["abort_request", "continue_generation", "abort_request", "flush_cache"]
GIVEN_BACK = ["abort_request", "continue_generation", "abort_request"]
SERVER = {"tp_size": 1, "pp_size": 1, "disable_overlap_schedule": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_config(tmp_path / "model", hidden_size=64, vocab_size=300)


def write_config(folder: Path, **shape: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **shape}))
    return folder


def fake(folder: Path, **more: Any) -> FakeSGLang:
    model = {"model_type": "qwen3", "model_path": str(folder)}
    return FakeSGLang(**{"model": model, "server": dict(SERVER), **more})


def fit_of(folder: Path, **more: Any) -> ExternalFit:
    return ExternalFit(**{"model_path": folder, "num_devices": 1, "overlap": False, **more})


def engine(url: str, folder: Path, key: str | None = None, **more: Any) -> ExternalEngine:
    headers = engine_headers({"api_key": key})
    return ExternalEngine(url, fit_of(folder, **more), headers=headers, poll_seconds=0.01)


async def test_it_is_brought_to_a_known_state_when_taken_and_let_go_when_given_back(
    folder: Path,
) -> None:
    """An earlier run left it paused, busy and with KV of its own versions."""
    async with fake(folder, paused=True, num_busy=1).running() as server:
        taken = engine(server.url, folder)
        assert not taken.alive
        await taken.start(7, 10.0)
        assert taken.alive and await taken.healthy(deep=False)
        assert server.calls == [*TAKEN, "abort_request", "flush_cache", "update_weight_version"]
        assert server.label == "7" and not server.paused
        server.calls.clear()
        server.paused = True
        await taken.stop()
        await taken.stop()
        assert server.calls == GIVEN_BACK and not server.paused and not taken.alive
        assert server.aborted == ["*"] * len(server.aborted)


async def test_it_is_awaited_until_it_answers(folder: Path) -> None:
    port = free_port()
    taken = engine(f"http://127.0.0.1:{port}", folder)
    starting = asyncio.create_task(taken.start(0, 30.0))
    await asyncio.sleep(0)
    async with fake(folder).running(port):
        await starting
        assert await taken.healthy(deep=False)
    assert not await taken.healthy(deep=False)


async def test_one_that_is_not_there_is_named_with_its_flags(folder: Path) -> None:
    taken = engine(f"http://127.0.0.1:{free_port()}", folder)
    with pytest.raises(EngineError) as caught:
        await taken.start(0, 0.1)
    for part in ("0.1 s", "Connect", "--rollout-external-engine-addrs", "--engine-start-timeout"):
        assert part in str(caught.value)
    assert not taken.alive


@pytest.mark.parametrize("key", [None, "other"])
async def test_another_key_is_refused_at_once(folder: Path, key: str | None) -> None:
    async with fake(folder, key="sesame").running() as server:
        with pytest.raises(EngineError, match=r"answered 401.*--sglang-api-key"):
            await engine(server.url, folder, key).start(0, 60.0)


async def test_the_key_opens_every_route_the_pushs_and_the_memorys_too(
    folder: Path, tmp_path: Path
) -> None:
    async with fake(folder, key="sesame").running() as server:
        pool = SGLangPool(
            [engine(server.url, folder, "sesame")],
            concurrency=1,
            max_restarts=0,
            start_timeout_seconds=10.0,
        )
        await pool.start()
        headers = engine_headers({"api_key": "sesame"})
        memory = EngineMemory(pool, headers=headers)
        await memory.release()
        await memory.resume()
        transport = DiskTransport(
            pool, _Sender(), ClusterConfig(), tmp_path / "weights", headers=headers
        )
        assert (await transport.push(3)).num_engines == 1
        await transport.close()
        await pool.close()
        assert server.label == "3" and not server.paused
        assert server.calls[-3:] == GIVEN_BACK


async def test_one_that_was_started_anew_is_not_healthy(folder: Path) -> None:
    async with fake(folder).running() as server:
        taken = engine(server.url, folder)
        await taken.start(2, 10.0)
        server.label = "default"
        assert not await taken.healthy(deep=False)


async def test_a_condemned_one_is_let_go_taken_again_and_resynced(folder: Path) -> None:
    async with fake(folder).running() as server:
        pool = SGLangPool(
            [engine(server.url, folder)],
            concurrency=1,
            max_restarts=1,
            start_timeout_seconds=10.0,
            sleep=lambda seconds: asyncio.sleep(0),
        )
        await pool.start()
        seen: list[tuple[str, list[str]]] = []

        async def resync(endpoint: str) -> None:
            seen.append((endpoint, list(server.calls)))

        pool.on_restart = resync
        server.calls.clear()
        pool.condemn(server.url, "a test")
        assert await pool.settled(server.url)
        assert seen == [(server.url, [*GIVEN_BACK, *TAKEN, "update_weight_version"])]
        await pool.close()


def test_nothing_waits_for_long_where_no_event_loop_runs(folder: Path) -> None:
    """The second Ctrl-C: the pool is ended on another thread, and then the process."""

    async def run() -> list[str]:
        async with fake(folder).running() as server:
            taken = engine(server.url, folder)
            await taken.start(0, 10.0)
            server.calls.clear()
            await asyncio.to_thread(taken.kill)
            return server.calls

    assert asyncio.run(run()) == GIVEN_BACK


@pytest.mark.parametrize(
    ("says", "fits", "said"),
    [
        ({"model_type": "llama"}, {}, "it serves a llama"),
        ({"tp_size": 2}, {}, "say --rollout-num-gpus-per-engine 2"),
        ({"disaggregation_mode": "prefill"}, {}, "one half (prefill)"),
        ({}, {"returns_experts": True}, "--enable-return-routed-experts"),
        ({}, {"overlap": True}, "add --sglang-disable-overlap-schedule"),
        ({"disable_overlap_schedule": False}, {}, "start it with --disable-overlap-schedule"),
        (
            {"max_running_requests": 8},
            {"user": {"max_running_requests": 16}},
            "max_running_requests 8, --sglang-max-running-requests says 16",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    folder: Path, says: dict[str, Any], fits: dict[str, Any], said: str
) -> None:
    it = {"model_type": "qwen3", "model_path": str(folder), **SERVER}
    assert fit_of(folder).problems(it) == []
    (problem,) = fit_of(folder, **fits).problems({**it, **says})
    assert said in problem


def test_a_model_of_another_shape_does_not_fit(folder: Path, tmp_path: Path) -> None:
    other = write_config(tmp_path / "other", hidden_size=128, vocab_size=400)
    it = {"model_type": "qwen3", "model_path": str(other), **SERVER}
    assert fit_of(folder).problems(it) == [
        f"its model {other} has {name} {its}, --hf-checkpoint {folder} has {ours}"
        for name, its, ours in (("hidden_size", 128, 64), ("vocab_size", 400, 300))
    ]
    assert fit_of(folder).problems({**it, "model_path": "/on/another/machine"}) == []


async def test_what_does_not_fit_is_not_taken(folder: Path) -> None:
    async with fake(folder, server={**SERVER, "tp_size": 4}).running() as server:
        with pytest.raises(EngineError, match="does not fit this run: it has 4 devices"):
            await engine(server.url, folder).start(0, 10.0)
        assert server.calls == []


class _Sender:
    async def export_hf(self, path: Path) -> None:
        (path / "model.safetensors").write_bytes(b"")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)
