"""One SGLang server that somebody else runs (--rollout-external-engine-addrs): it is taken for a
run and given back, never started and never ended.

Whatever it served before, it is brought to a known state when it is taken: nothing runs, nothing is
cached, its label is a policy version. Its weights are ours from the first push on."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from pipeline.core.errors import EngineError
from stages.engine.external_calls import CALL_SECONDS, call, let_go
from stages.engine.external_fit import ExternalFit
from stages.engine.launch import GENERATE_PROBE_SECONDS, PROBE_SECONDS, answers

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0  # between questions to a server that does not answer yet
LEAVE_SECONDS = 2.0  # at most, for giving one back where no event loop runs any more


class ExternalEngine:
    """`slot.EngineProcess` over a server of somebody else's."""

    def __init__(
        self,
        endpoint: str,
        fit: ExternalFit,
        *,
        headers: Mapping[str, str] | None = None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """`fit`: what it must be. `headers`: of every request to it."""
        self.endpoint, self._fit = endpoint, fit
        self.on_death: Callable[[str], None] | None = None  # nobody watches it
        self._headers, self._poll_seconds = dict(headers or {}), poll_seconds
        self._taken = False
        self._leaving: threading.Thread | None = None

    @property
    def name(self) -> str:
        return f"external engine {self.endpoint}"

    @property
    def alive(self) -> bool:
        """Is it ours at present? Only `healthy` asks whether it answers."""
        return self._taken

    async def start(self, weight_version: int, timeout_seconds: float) -> None:
        """Waits until it answers, checks that it serves this run's model in the way that this run
        needs, and takes it. Raises EngineError."""
        await self._left()
        last = "nothing was asked"
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                aiohttp.ClientSession(headers=self._headers) as session,
            ):
                while why := await self._silence(session):
                    last = why
                    await asyncio.sleep(self._poll_seconds)
                last = "it answered, but not to everything"
                await self._check(session)
                await self._take(session, weight_version)
        except TimeoutError:
            raise EngineError(
                f"{self.name} could not be taken in {timeout_seconds:g} s: {last}. Does SGLang run"
                " there, and can this machine reach it? (--rollout-external-engine-addrs,"
                " --engine-start-timeout-seconds)"
            ) from None
        self._taken = True
        logger.info("%s is taken for this run", self.name)

    async def healthy(self, *, deep: bool) -> bool:
        """See `launch.Engine.healthy`. A server whose label is no version was started anew by
        whoever runs it, with weights of its own."""
        async with aiohttp.ClientSession(headers=self._headers) as session:
            try:
                info = await call(session, "GET", f"{self.endpoint}/model_info", PROBE_SECONDS)
            except EngineError:
                return False
            if not str(info.get("weight_version")).isdecimal():
                return False
            return not deep or await answers(
                session, f"{self.endpoint}/health_generate", GENERATE_PROBE_SECONDS
            )

    async def stop(self) -> None:
        """Gives it back. It may be called more than once."""
        self.kill()
        await self._left()

    def kill(self) -> None:
        """Gives it back as far as it can be: our requests are dropped, and it is not left paused.
        From any thread, at any time; nobody waits for its answers where an event loop runs."""
        if not self._taken:
            return
        self._taken = False
        self._leaving = threading.Thread(
            target=let_go, args=(self.endpoint, self._headers), name=f"leave {self.endpoint}"
        )
        self._leaving.start()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._leaving.join(LEAVE_SECONDS)

    async def on_nodes(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """See SGLangPool.on_nodes. Nobody of ours is on its node: it must see this one's files."""
        return [await asyncio.to_thread(work, *args)]

    def log_tail(self) -> str:
        return "(its log is with whoever runs it)"

    async def _left(self) -> None:
        if self._leaving is not None:
            await asyncio.to_thread(self._leaving.join)
            self._leaving = None

    async def _silence(self, session: aiohttp.ClientSession) -> str | None:
        """Why it does not answer yet; None where it does."""
        url = f"{self.endpoint}/model_info"
        try:
            async with session.get(
                url, timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)
            ) as response:
                if response.status in (401, 403):
                    raise EngineError(
                        f"{self.name} answered {response.status}: it asks for another key than"
                        f" {'--sglang-api-key gives' if self._headers else 'none'}. Give its own"
                        " with --sglang-api-key"
                    )
                return None if response.status == 200 else f"{url} answered {response.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    async def _check(self, session: aiohttp.ClientSession) -> None:
        info, server = [
            await call(session, "GET", f"{self.endpoint}/{path}", CALL_SECONDS)
            for path in ("model_info", "server_info")
        ]
        problems = self._fit.problems({**server, **info})
        if problems:
            raise EngineError(f"{self.name} does not fit this run: {'; '.join(problems)}")

    async def _take(self, session: aiohttp.ClientSession, weight_version: int) -> None:
        """An earlier run that was killed may have left it paused, with requests under way and KV of
        its own versions, whose numbers this run's cache keys would meet again."""
        post = f"{self.endpoint}/"
        drop: Mapping[str, Any] = {"rid": "", "abort_all": True}
        await call(session, "POST", post + "abort_request", CALL_SECONDS, drop)
        await call(session, "POST", post + "continue_generation", CALL_SECONDS, {})
        while True:
            # again: what still waited while it was paused is not dropped by the first one
            await call(session, "POST", post + "abort_request", CALL_SECONDS, drop)
            try:
                await call(session, "POST", post + "flush_cache", CALL_SECONDS)
                break
            except EngineError as busy:
                logger.info("%s is busy (%s); it is taken when it is not", self.name, busy)
                await asyncio.sleep(self._poll_seconds)
        label = {"new_version": str(weight_version), "abort_all_requests": False}
        await call(session, "POST", post + "update_weight_version", CALL_SECONDS, label)
