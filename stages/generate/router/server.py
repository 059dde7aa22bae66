"""The router's HTTP server: SGLang's routes over the run's `EngineClient`, so that what comes
through it is leased, repeated, paused for pushes and stamped with versions like everything else.

It runs on the run's own event loop. The socket listens from the beginning, so that its port is
known; the server behind it starts with the first connection and costs nothing before."""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.core.errors import ConfigError, EngineError, GenerateError, RefusedRequestError
from pipeline.core.images import to_data_url
from pipeline.core.protocols import EngineClient, Tokenizer
from pipeline.core.time import MonotonicTime, TimeSource
from pipeline.core.types import Completion
from stages.generate.image_prompts import Vision
from stages.generate.router.answer import aborted, answer_of
from stages.generate.router.known_texts import KnownTexts
from stages.generate.router.payload import NativePayload, NativeRequest, PayloadError, read_payload
from stages.generate.through_router import ROUTING_HEADER

if TYPE_CHECKING:
    from aiohttp import web

logger = logging.getLogger(__name__)

BACKLOG = 4096
CLOSE_SECONDS = 1.0  # for answers under way when the run ends
MAX_PAYLOAD_BYTES = 1 << 30


class Router:
    """`address` is bound at construction; `start` and `close` on the run's event loop."""

    def __init__(
        self,
        client: EngineClient,
        tokenizer: Tokenizer,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        model: str = "",
        current_version: Callable[[], int] = lambda: 0,
        context_length: int | None = None,
        vision: Vision | None = None,
        time: TimeSource | None = None,
    ) -> None:
        """`port` None: a free one. `model`: what the routes that name the model say. Raises
        ConfigError where nothing can listen there."""
        self._client, self._tokenizer, self._vision = client, tokenizer, vision
        self._model, self._current_version = model, current_version
        self._context_length = context_length
        self._texts = KnownTexts(lambda text: tokenizer.encode(text, add_special_tokens=False))
        self._time = time or MonotonicTime()
        self._in_flight: dict[str, asyncio.Task[Completion]] = {}
        self._starting: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None
        self._routes: Mapping[tuple[str, str], Callable[[web.Request], Awaitable[Any]]] = {
            ("POST", "/generate"): self._generate,
            ("POST", "/abort_request"): self._abort,
            ("GET", "/health"): self._health,
            ("GET", "/health_generate"): self._health,
            ("GET", "/get_model_info"): self._model_info,
            ("GET", "/model_info"): self._model_info,
            ("GET", "/v1/models"): self._models,
            ("GET", "/v1/loads"): self._loads,
            ("GET", "/workers"): self._workers,
            ("GET", "/list_workers"): self._workers,
        }
        self._socket = _listening(host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._socket, self._first_connection)

    async def close(self) -> None:
        """Requests under way are answered as aborted. Idempotent, and right without `start`."""
        if self._starting is not None:
            await asyncio.wait({self._starting})
        elif self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
        for task in self._in_flight.values():
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        self.release()

    def release(self) -> None:
        """Give the port back, without an event loop."""
        self._socket.close()

    def _first_connection(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        self._starting = loop.create_task(self._serve(), name="start the router")

    async def _serve(self) -> None:
        from aiohttp import web

        try:
            app = web.Application(client_max_size=MAX_PAYLOAD_BYTES)
            app.router.add_route("*", "/{route:.*}", self._answer)
            self._runner = web.AppRunner(
                app, handler_cancellation=True, shutdown_timeout=CLOSE_SECONDS, access_log=None
            )
            await self._runner.setup()
            await web.SockSite(self._runner, self._socket, backlog=BACKLOG).start()
        except Exception:
            # whoever waits for an answer must not wait for ever
            logger.exception("the router at %s could not start", self.url)
            self.release()
            raise

    # -- routes ------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.Response:
        route = self._routes.get((request.method, request.path))
        if route is None:
            known = ", ".join(f"{method} {path}" for method, path in self._routes)
            return _said(404, f"{request.method} {request.path} is not served; there are: {known}")
        try:
            return _json(200, await route(request))
        except PayloadError as error:
            return _said(400, str(error))
        except (RefusedRequestError, GenerateError) as error:
            return _said(400, str(error))
        except EngineError as error:
            return _said(503, str(error))

    async def _health(self, request: web.Request) -> dict[str, Any]:
        return {}

    async def _model_info(self, request: web.Request) -> dict[str, Any]:
        return {
            "model_path": self._model,
            "tokenizer_path": self._model,
            "is_generation": True,
            "weight_version": str(self._current_version()),
        }

    async def _models(self, request: web.Request) -> dict[str, Any]:
        model = {"id": self._model, "object": "model", "owned_by": "slipstream"}
        return {"object": "list", "data": [model]}

    async def _loads(self, request: web.Request) -> dict[str, Any]:
        return {"loads": [{"num_total_reqs": len(self._in_flight)}]}

    async def _workers(self, request: web.Request) -> dict[str, Any]:
        """Itself: engines are given requests by nobody but the pool."""
        return {"workers": [{"url": self.url, "is_healthy": True}], "urls": [self.url]}

    async def _abort(self, request: web.Request) -> dict[str, Any]:
        payload = _decoded(await request.read())
        everything = isinstance(payload, dict) and payload.get("abort_all")
        rid = payload.get("rid") if isinstance(payload, dict) else None
        if not everything and not (isinstance(rid, str) and rid):
            raise PayloadError(f"{payload!r:.80}: expected rid, a string, or abort_all, true")
        for known, task in self._in_flight.items():
            if everything or known.startswith(str(rid)):
                task.cancel()
        return {}

    async def _generate(self, request: web.Request) -> Any:
        payload = read_payload(_decoded(await request.read()))
        session = request.headers.get(ROUTING_HEADER)
        if len(payload.requests) == 1:
            answer = await self._one(payload.requests[0], session)
            return [answer] if payload.as_list else answer
        return await self._all(payload, session)

    async def _all(self, payload: NativePayload, session: str | None) -> list[dict[str, Any]]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(r, session)) for r in payload.requests]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, asked: NativeRequest, session: str | None) -> dict[str, Any]:
        began, rid = self._time.now(), asked.rid or uuid.uuid4().hex
        ids, more = self._inputs(asked)
        if asked.known_experts:
            more["known_experts"] = asked.known_experts
        work = self._client.generate(
            ids,
            self._within_context(asked.sampling_params, len(ids)),
            session_id=session or asked.routing_key,
            **more,
        )
        task = asyncio.ensure_future(work)
        key = rid if rid not in self._in_flight else f"{rid}-{uuid.uuid4().hex}"
        self._in_flight[key] = task
        try:
            await asyncio.wait({task})
        finally:
            del self._in_flight[key]
            task.cancel()
        seconds = self._time.now() - began
        if task.cancelled():
            return aborted(rid, len(ids), self._current_version(), seconds)
        completion = task.result()
        if isinstance(asked.prompt, str):
            self._texts.remember(asked.prompt + completion.text, [*ids, *completion.token_ids])
        return answer_of(
            completion,
            rid=rid,
            num_prompt_tokens=len(ids),
            version=self._current_version(),
            seconds=seconds,
            decode=self._decode if asked.with_texts else None,
        )

    # -- inputs ------------------------------------------------------------------------------------

    def _inputs(self, asked: NativeRequest) -> tuple[list[int], dict[str, Any]]:
        ids = (
            self._texts.tokens_of(asked.prompt)
            if isinstance(asked.prompt, str)
            else list(asked.prompt)
        )
        if not asked.images:
            return ids, {}
        if self._vision is None:
            raise PayloadError("image_data is given, but the model has no image processor")
        try:
            images = [to_data_url(_as_data_url(image)) for image in asked.images]
        except ValueError as error:
            raise PayloadError(f"image_data: {error}") from error
        return self._vision.for_engine(ids), {"images": images}

    def _within_context(self, params: Mapping[str, Any], num_prompt: int) -> Mapping[str, Any]:
        if self._context_length is None:
            return params
        room = self._context_length - num_prompt
        if room < 1:
            raise PayloadError(
                f"the prompt has {num_prompt} tokens and leaves no room in a context of"
                f" {self._context_length} (--rollout-max-context-len)"
            )
        return {**params, "max_new_tokens": min(params["max_new_tokens"], room)}

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


def _listening(host: str, port: int | None) -> socket.socket:
    try:
        out = socket.create_server((host, port or 0), backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--sglang-router-ip {host} --sglang-router-port {port}: nothing can listen there"
            f" ({error}); leave the port out to have a free one"
        ) from error
    out.setblocking(False)
    return out


def _decoded(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise PayloadError(f"the body is no JSON ({error}): {body[:80]!r}") from error


def _as_data_url(image: Any) -> Any:
    """SGLang also takes bare base64, which begins like no path."""
    kinds = {"iVBOR": "png", "/9j/": "jpeg", "R0lGOD": "gif", "UklGR": "webp"}
    for start, kind in kinds.items():
        if isinstance(image, str) and image.startswith(start):
            return f"data:image/{kind};base64,{image}"
    return image


def _json(status: int, body: Any) -> web.Response:
    from aiohttp import web

    return web.Response(
        status=status, body=orjson.dumps(body), headers={"Content-Type": "application/json"}
    )


def _said(status: int, message: str) -> web.Response:
    return _json(status, {"error": {"message": message, "code": status}})
