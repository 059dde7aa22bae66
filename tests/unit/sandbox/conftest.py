"""One sandbox for a file's tests: to start one takes 0.1 s, a call 5 ms."""

import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox.limits import MIB, Limits
from sandbox.pool import Sandbox
from sandbox.reasons import why_unavailable

SMALL = Limits(
    seconds=10.0,
    memory_bytes=256 * MIB,
    disk_bytes=8 * MIB,
    file_bytes=4 * MIB,
    output_bytes=64 * 1024,
    processes=12,
)


def needs_namespaces() -> None:
    """Only a kernel that gives nobody a namespace excuses: what else goes wrong is a failure."""
    asked = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"])
    if asked.returncode:
        pytest.skip(f"no user namespaces here: {why_unavailable()}")


@pytest.fixture(scope="session", autouse=True)
def _allowed() -> None:
    needs_namespaces()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small() -> AsyncIterator[Sandbox]:
    """A pool of one worker, under SMALL."""
    async with Sandbox(SMALL, num_workers=1) as sandbox:
        yield sandbox
