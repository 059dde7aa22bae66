"""The gateway's HTTP server: one a process that makes rollouts, for all agents of that process.

A session is open from `open` to `close` and is told by its token. Agents are not trusted: their
requests are bounded in size and number, checked, and refused with words; what they do in one
session has no effect on another."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.core.errors import ConfigError, GenerateError
from pipeline.core.time import MonotonicTime, TimeSource
from stages.gateway.chat import read_chat, said
from stages.gateway.dialect import CountDialect, Dialect
from stages.gateway.dialects import COUNTS, DIALECTS
from stages.gateway.errors import ForeignSessionError, RequestError, TooManyError, UnknownTokenError
from stages.gateway.http_answers import in_json, json_answer, refusing, send_events, send_json
from stages.gateway.limits import Limits, RateLimit
from stages.gateway.openapi import describe
from stages.gateway.session import Session

if TYPE_CHECKING:
    from aiohttp import web

CLOSE_SECONDS = 1.0  # for answers under way when the gateway ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What an agent needs to reach its session."""

    url: str  # http://HOST:PORT, without /v1
    token: str
    rollout: str

    @property
    def base_url(self) -> str:
        """OpenAI's clients want the version in it."""
        return f"{self.url}/v1"

    @property
    def reward_url(self) -> str:
        return f"{self.url}/v1/rollouts/{self.rollout}/reward"


class Gateway:
    """Starts with the first session. `host`: where it listens, on a free port."""

    def __init__(
        self,
        *,
        model: str = "policy",
        host: str = "127.0.0.1",
        limits: Limits | None = None,
        dialects: Sequence[Dialect] = DIALECTS,
        counts: Sequence[CountDialect] = COUNTS,
        time: TimeSource | None = None,
    ) -> None:
        """`model`: the name that /v1/models gives; agents may ask for any."""
        self.model, self._host, self._limits = model, host, limits or Limits()
        self._dialects, self._counts, self._time = dialects, counts, time or MonotonicTime()
        self._sessions: dict[str, Session] = {}  # by token
        self._rates: dict[str, RateLimit] = {}
        self._runner: web.AppRunner | None = None
        self._starting = asyncio.Lock()
        self._port = 0
        self._description = orjson.dumps(describe([*dialects, *counts]))

    @property
    def url(self) -> str:
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    async def start(self) -> None:
        """Idempotent. Raises ConfigError where nothing can listen."""
        async with self._starting:  # many sessions are the first at once
            if self._runner is None:
                await self._start()

    async def _start(self) -> None:
        from aiohttp import web

        runner = web.AppRunner(
            self._application(),
            handler_cancellation=True,
            shutdown_timeout=CLOSE_SECONDS,
            access_log=None,
            auto_decompress=False,  # a small body could be a large one
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, 0, backlog=4096).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigError(
                f"the gateway cannot listen at {self._host} ({error}); expected an address of this"
                " machine (--agent-gateway-host)"
            ) from error
        self._runner, self._port = runner, runner.addresses[0][1]

    def _application(self) -> web.Application:
        from aiohttp import web

        app = web.Application(
            client_max_size=self._limits.max_body_bytes, middlewares=[web.middleware(in_json)]
        )
        for dialect in self._dialects:
            app.router.add_post(dialect.path, refusing(dialect, self._complete))
        for counts in self._counts:
            app.router.add_post(counts.path, refusing(counts, self._count))
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/rollouts/{rollout}/reward", self._reward)
        app.router.add_get("/openapi.json", self._describe)
        return app

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def open(self, session: Session) -> Access:
        """Raises GenerateError where there are too many."""
        await self.start()
        if len(self._sessions) >= self._limits.max_sessions:
            raise GenerateError(
                f"the gateway has {len(self._sessions)} sessions, as many as it may"
            )
        token = f"sk-{secrets.token_urlsafe(24)}"
        self._sessions[token] = session
        self._rates[token] = RateLimit(self._limits, self._time)
        return Access(url=self.url, token=token, rollout=session.id)

    def shut(self, access: Access) -> Session:
        """Ends a session: its token is worth nothing from here on."""
        self._rates.pop(access.token, None)
        session = self._sessions.pop(access.token)
        session.close()
        return session

    # -- routes ------------------------------------------------------------------------------------

    async def _complete(self, request: web.Request, dialect: Dialect) -> web.StreamResponse:
        session = self._admitted(request)
        if session.num_in_flight >= self._limits.max_in_flight:
            raise TooManyError(f"{session.num_in_flight} requests of this rollout wait already")
        body = await self._body(request)
        exchange = await session.chat(read_chat(dialect.request(body, session.past)))
        dialect.keep(exchange.answer, body, session.past)
        try:
            if dialect.streams(body):
                return await send_events(request, dialect.events(exchange.answer, body))
            return await send_json(request, dialect.answer(exchange.answer, body))
        except BaseException:  # cancelled, or the agent has gone
            exchange.withdraw()
            raise

    async def _count(self, request: web.Request, counts: CountDialect) -> web.StreamResponse:
        session = self._admitted(request)
        asked = read_chat(counts.request(await self._body(request)))
        return json_answer(200, counts.answer(session.count(asked)))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self._admitted(request)
        model = {"id": self.model, "object": "model", "created": 0, "owned_by": "slipstream"}
        return json_answer(200, {"object": "list", "data": [model]})

    async def _reward(self, request: web.Request) -> web.StreamResponse:
        session = self._admitted(request)
        if request.match_info["rollout"] != session.id:
            raise ForeignSessionError("the token is of another rollout")
        session.reward = _read_reward(await self._body(request))
        return json_answer(200, {"id": session.id, "reward": session.reward})

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        return web.Response(body=self._description, content_type="application/json")

    # -- requests ----------------------------------------------------------------------------------

    def _admitted(self, request: web.Request) -> Session:
        token = _token(request)
        session = self._sessions.get(token)
        if session is None:
            raise UnknownTokenError(
                "expected the token of a rollout under way, as `Authorization: Bearer TOKEN` or"
                " `x-api-key: TOKEN`"
            )
        if early := self._rates[token].take():
            raise TooManyError(f"too many requests; the next in {early:.2f} s")
        return session

    async def _body(self, request: web.Request) -> dict[str, Any]:
        if (coding := request.headers.get("Content-Encoding", "identity")) != "identity":
            raise RequestError(f"Content-Encoding {said(coding)}; expected a body as it is")
        try:
            body = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            raise RequestError(f"the body is no JSON: {error}") from error
        if not isinstance(body, dict):
            raise RequestError(f"the body is {said(body)}; expected a JSON object")
        return body


def _token(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key", "")


def _read_reward(body: Mapping[str, Any]) -> Any:
    reward = body.get("reward")
    if isinstance(reward, dict):
        return reward
    if isinstance(reward, int | float) and not isinstance(reward, bool) and math.isfinite(reward):
        return float(reward)
    raise RequestError(
        f"reward is {said(reward)}; expected a number, or an object of several", param="reward"
    )
