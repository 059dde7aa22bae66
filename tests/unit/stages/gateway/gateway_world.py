"""A gateway over a scripted engine, and a client without any SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import orjson

from pipeline.core.chat_template import ChatTemplate
from pipeline.core.time import MonotonicTime
from stages.engine.mock import MockTokenizer
from stages.gateway.server import Access, Gateway
from stages.gateway.session import Model, Session
from stages.generate.tools.template import AgentTemplate
from tests.unit.fake_engine import PARAMS, FakeEngineClient

TOKENIZER = MockTokenizer()


class World:
    """One open session, and requests to it."""

    def __init__(self, client: FakeEngineClient, session: Session, access: Access) -> None:
        self.client, self.session, self.access = client, session, access
        self.http = aiohttp.ClientSession()

    async def post(
        self, path: str, body: Any, *, token: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """(status, the answer's JSON). `body`: bytes are sent as they are."""
        key = self.access.token if token is None else token
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        auth = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.http.post(
            self.access.url + path, data=data, headers={**auth, **headers}
        ) as answer:
            return answer.status, orjson.loads(await answer.read())

    async def chat(self, *messages: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The assistant's message."""
        status, answer = await self.post(
            "/v1/chat/completions", {"messages": list(messages), **more}
        )
        assert status == 200, answer
        return answer["choices"][0]["message"]


def template_of(tokenizer: Any) -> ChatTemplate:
    return ChatTemplate(
        partial(AgentTemplate, tokenizer),
        lambda token: tokenizer.decode([token], skip_special_tokens=False),
    )


def make_session(client: FakeEngineClient, name: str = "r", **model: Any) -> Session:
    params = {**PARAMS, **model.pop("params", {})}
    tokenizer = model.pop("tokenizer", TOKENIZER)
    described = Model(client=client, tokenizer=tokenizer, template=template_of(tokenizer), **model)
    return Session(described, params, name, MonotonicTime())


@asynccontextmanager
async def open_world(
    *script: Any, gateway: Gateway | None = None, **model: Any
) -> AsyncIterator[World]:
    client, server = FakeEngineClient(*script), gateway or Gateway()
    session = make_session(client, **model)
    world = World(client, session, await server.open(session))
    try:
        yield world
    finally:
        await world.http.close()
        await server.close()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def shown(tokens: Any) -> str:
    return bytes(tokens).decode()
