"""A cancellation is never lost, not even in the moment of what was waited for (Python 3.11's wait_for loses it)."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from loomgate import clock
from loomgate.bus import State
from loomgate.bus.local import LocalBus


async def _cancelled_after(ticks: int, wait: Awaitable[object], happen: Callable[[], object]) -> bool:
    """Cancel ``wait`` so many turns of the loop after ``happen``; was it done before, or else cancelled?"""

    async def waiting() -> None:
        await wait

    task = asyncio.create_task(waiting())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    happen()
    for _ in range(ticks):
        await asyncio.sleep(0)
    if task.done():
        return True
    task.cancel()
    await asyncio.wait((task,))
    return task.cancelled()


async def _state() -> State:
    return State([], over=False)


@pytest.mark.parametrize("ticks", range(4))
def test_a_viewer_may_leave_in_the_moment_of_an_event(ticks: int) -> None:
    async def play() -> bool:
        bus = LocalBus(retention_seconds=60, retention_bytes=1000)
        viewer = await bus.subscribe("run_a", _state, fresh=True)
        return await _cancelled_after(ticks, viewer.next(10), lambda: bus.publish("run_a", [b"event\n\n"]))

    assert asyncio.run(play())


@pytest.mark.parametrize("ticks", range(4))
def test_a_sleeper_may_be_cancelled_in_the_moment_it_wakes(ticks: int) -> None:
    async def play() -> bool:
        event = asyncio.Event()
        return await _cancelled_after(ticks, clock.wait(event, 10), event.set)

    assert asyncio.run(play())
