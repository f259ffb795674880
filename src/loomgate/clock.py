"""Time, and nothing else: the only room that asks the operating system what time it is.

Everything that depends on time (expiry, leases, back-off, polling) goes through here, so that a test
moves time with `advance` instead of sleeping. Wall time is for stored timestamps and deadlines that
survive a restart; `monotonic` is for measuring how long something took.
"""

import asyncio
import time
from contextlib import suppress

_offset = 0.0
# By a key of each waiter's own, since several may wait for one event.
_sleepers: dict[object, tuple[asyncio.Event, asyncio.AbstractEventLoop]] = {}


def now() -> float:
    """Seconds since the Unix epoch, as a float (BEHAVIOUR CONV-04 wants whole ones: see `timestamp`)."""
    return time.time() + _offset


def timestamp() -> int:
    """Whole seconds since the Unix epoch, the form of every ``*_at`` field (BEHAVIOUR CONV-04)."""
    return int(now())


def monotonic() -> float:
    """Seconds on a clock that never goes back and that `advance` does not move."""
    return time.monotonic()


async def sleep(seconds: float) -> None:
    """Wait until `now` has moved on by ``seconds``; a jump by `advance` counts.

    Takes seconds (0 or less yields once to the event loop). Call it from a running event loop.
    """
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    before = now()
    end = before + seconds
    woken = asyncio.Event()
    while (left := end - before) > 0:
        woken.clear()
        await wait(woken, left)
        present = now()
        # The machine's clock may be set back; nobody sleeps the longer for it.
        end -= max(before - present, 0)
        before = present


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait until ``event`` is set, or until ``seconds`` have passed; a jump by `advance` sets the event."""
    key = object()
    _sleepers[key] = (event, asyncio.get_running_loop())
    try:
        # Not `wait_for`: before Python 3.12 it drops a cancellation that comes together with the event.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
    finally:
        _sleepers.pop(key, None)


def advance(seconds: float) -> None:
    """Move `now` forward by ``seconds`` (tests only) and wake every `sleep` and `wait`, in whatever thread they are."""
    global _offset
    _offset += seconds
    for woken, loop in tuple(_sleepers.values()):
        if not loop.is_closed():
            loop.call_soon_threadsafe(woken.set)
