"""What tools.py imports from beside it."""

import asyncio

SEMAPHORE = asyncio.Semaphore(4)


async def run_tool(text: str) -> str:
    await asyncio.sleep(0)
    return f"{len(text)} letters"
