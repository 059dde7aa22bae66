"""A process that says a lot is never held up, and only the end of it is kept."""

from __future__ import annotations

import asyncio
import sys

from stages.generate.mcp.last_words import KEPT_BYTES, LastWords


async def test_megabytes_pass_and_the_end_is_kept() -> None:
    words = LastWords()
    try:
        assert words.text() == ""
        program = "import sys; sys.stderr.write('x' * 3_000_000 + 'the end')"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stderr=words.file
        )
        assert await asyncio.wait_for(process.wait(), 60) == 0
        text = words.text()
        assert text.endswith("xthe end)") and len(text) < KEPT_BYTES + 50
    finally:
        words.close()
