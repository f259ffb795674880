"""Waiting for something to happen on the event loop, never for time to pass."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop run until ``condition()`` is true; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for need not know of it
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything happen that is about to happen: for asserting that something did not."""
    for _ in range(20):
        await asyncio.sleep(0.001)
