"""The gateway does what its OpenAPI description says, whatever it is sent: schemathesis asks, over
the real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from stages.gateway.dialects import COUNTS, DIALECTS
from stages.gateway.limits import Limits
from stages.gateway.openapi import describe
from stages.gateway.server import Access, Gateway
from tests.unit.fake_engine import FakeEngineClient
from tests.unit.stages.gateway.gateway_world import make_session

ROLLOUT = "r"
# not that all is refused which is not described: what is null, or not known, counts as not given
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
EXAMPLES = settings(
    max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.fixture(scope="module")
def access() -> Iterator[Access]:
    """A gateway on a thread of its own: whoever asks here, waits."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    gateway = Gateway(limits=Limits(requests_per_second=1e6, burst=1_000_000))
    session = make_session(FakeEngineClient("yes"), ROLLOUT)
    yield asyncio.run_coroutine_threadsafe(gateway.open(session), loop).result(10)
    asyncio.run_coroutine_threadsafe(gateway.close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


schema = schemathesis.openapi.from_dict(describe([*DIALECTS, *COUNTS]))


@schema.parametrize()
@EXAMPLES
def test_it_does_as_described(case: Any, access: Access) -> None:
    if "rollout" in case.path_parameters:
        case.path_parameters["rollout"] = ROLLOUT
    headers = {"Authorization": f"Bearer {access.token}"}
    case.call_and_validate(base_url=access.url, headers=headers, checks=CHECKS)
