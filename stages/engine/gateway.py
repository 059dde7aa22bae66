"""SGLang's router (PyPI sglang-router 0.3.2) as a process of the run: bound to loopback, it dies
with its parent.

It is called gateway here, for `stages/generate/router` is another one, in front of this. What is
decided elsewhere is off in it: its retries, circuit breaker and health checks."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from pipeline.core.errors import EngineError
from pipeline.core.ports import free_port
from stages.engine.external_calls import call
from stages.engine.launch import answers

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
CALL_SECONDS = 10.0
JOIN_SECONDS = 60.0  # until it has looked at an engine and takes it
POLL_SECONDS = 0.02
# slime's, with which `cache_aware` turns to the least loaded engine
BALANCE = {"balance_abs_threshold": 10, "balance_rel_threshold": 1.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """An engine, as the gateway knows it."""

    id: str
    load: int  # requests in flight


class Gateway:
    """One at a time; `start` again after its death gives another process at the same address."""

    def __init__(
        self, *, policy: str, log_path: Path, timeout_seconds: float, api_key: str | None = None
    ) -> None:
        """`policy`: --router-policy. `timeout_seconds`: of a request. `api_key`: the engines'."""
        self._policy, self._log_path, self._timeout = policy, log_path, timeout_seconds
        self._api_key = api_key
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Returns when it takes requests. Raises EngineError with the end of its log."""
        self.kill()
        self._spawn()
        try:
            async with asyncio.timeout(START_SECONDS):
                while not await answers(self._open(), f"{self.url}/liveness"):
                    if not self.alive:
                        raise EngineError(f"SGLang's router ended while it started: {self._tail()}")
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            self.kill()
            raise EngineError(
                f"SGLang's router did not answer in {START_SECONDS:g} s: {self._tail()}"
            ) from None
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """From any thread, at any time."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> None:
        """It may be called more than once."""
        self.kill()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def workers(self) -> dict[str, Worker]:
        """The engines to which it sends requests, by endpoint. Raises EngineError."""
        found = await call(self._open(), "GET", f"{self.url}/workers", CALL_SECONDS)
        return {
            str(w["url"]): Worker(id=str(w["id"]), load=int(w.get("load") or 0))
            for w in found.get("workers", ())
            if w.get("is_healthy")
        }

    async def add(self, endpoint: str) -> None:
        """Returns when it sends requests there. It asks the engine for its health first, so a
        paused one is not taken. Raises EngineError."""
        body: dict[str, Any] = {"url": endpoint}
        if self._api_key is not None:
            body["api_key"] = self._api_key
        await self._order("POST", "workers", body)
        await self._until(endpoint, True, JOIN_SECONDS)

    async def remove(self, endpoint: str) -> None:
        """Returns when it sends no new requests there; those in flight go on. Raises
        EngineError."""
        worker = (await self.workers()).get(endpoint)
        if worker is not None:
            await self._order("DELETE", f"workers/{worker.id}")
        await self._until(endpoint, False, CALL_SECONDS)

    async def _until(self, endpoint: str, is_there: bool, seconds: float) -> None:
        """Its answer to an order is 202: it does such things in the background."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    workers = await self.workers()
                    if (endpoint in workers) is is_there:
                        return
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise EngineError(
                f"SGLang's router did not {'take' if is_there else 'let go of'} {endpoint} in"
                f" {seconds:g} s: {self._tail()}"
            ) from None

    async def _order(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        try:
            async with self._open().request(
                method,
                f"{self.url}/{path}",
                json=body,
                timeout=aiohttp.ClientTimeout(total=CALL_SECONDS),
            ) as response:
                if response.status not in (200, 202):
                    said = (await response.text())[:300]
                    raise EngineError(f"{self.url}/{path} answered {response.status}: {said}")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EngineError(f"{self.url}/{path} failed: {type(error).__name__}") from error

    def _spawn(self) -> None:
        settings = {
            "host": "127.0.0.1",
            "port": self._port,
            "policy": self._policy,
            "request_timeout_secs": max(1, int(self._timeout)),
            # 0.3.2 would take the default port, 29000, for its metrics otherwise
            "prometheus_host": "127.0.0.1",
            "prometheus_port": free_port([self._port]),
            "disable_retries": True,
            "disable_circuit_breaker": True,
            "disable_health_check": True,
            "log_level": "warn",
            **BALANCE,
        }
        here = Path(__file__)
        command = [
            *(sys.executable, str(here.with_name("serve.py")), str(os.getpid()), "-"),
            *(sys.executable, str(here.with_name("gateway_main.py")), json.dumps(settings)),
        ]
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        logger.info("SGLang's router starts at %s, log in %s", self.url, self._log_path)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    def _tail(self) -> str:
        try:
            return self._log_path.read_text(errors="replace")[-600:] or "(it wrote nothing)"
        except OSError:
            return "(no log)"
