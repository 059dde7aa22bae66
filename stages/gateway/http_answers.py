"""The gateway's answers on their way out: JSON, server-sent events, and every refusal in words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from stages.gateway.dialect import CountDialect, Dialect, openai_error
from stages.gateway.errors import RequestError, TooLargeError, TooManyError

if TYPE_CHECKING:
    from aiohttp import web

Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]
D = TypeVar("D", Dialect, CountDialect)


def refusing(
    dialect: D, handle: Callable[[web.Request, D], Awaitable[web.StreamResponse]]
) -> Handler:
    """`handle`, with its refusals in the dialect's words."""
    from aiohttp import web

    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            return await handle(request, dialect)
        except web.HTTPRequestEntityTooLarge as error:
            return json_answer(error.status, dialect.error(TooLargeError(error.reason)))
        except RequestError as error:
            return json_answer(error.status, dialect.error(error), _hints(error))

    return answered


async def in_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as JSON."""
    from aiohttp import web

    try:
        return await handler(request)
    except RequestError as error:
        return json_answer(error.status, openai_error(error), _hints(error))
    except web.HTTPException as error:
        refusal = TooLargeError if error.status == 413 else RequestError
        return json_answer(error.status, openai_error(refusal(error.reason)), error.headers)
    except orjson.JSONEncodeError as error:  # nested deeper than JSON is written
        return json_answer(400, openai_error(RequestError(f"the body cannot be read: {error}")))


def json_answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    from aiohttp import web

    kept = {k: v for k, v in (headers or {}).items() if k in ("Allow", "Retry-After")}
    return web.Response(
        status=status, body=orjson.dumps(body), headers=kept, content_type="application/json"
    )


def _hints(error: RequestError) -> dict[str, str]:
    return {"Retry-After": "1"} if isinstance(error, TooManyError) else {}


async def send_json(request: web.Request, body: Any) -> web.StreamResponse:
    """An answer that is known to have been written."""
    response = json_answer(200, body)
    await response.prepare(request)
    await response.write_eof()
    return response


async def send_events(request: web.Request, events: Iterable[bytes]) -> web.StreamResponse:
    from aiohttp import web

    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    for event in events:
        await response.write(event)
    await response.write_eof()
    return response
