"""A cancellation that comes in the same moment as what was waited for is not lost."""

import asyncio

import pytest

from loomgate import clock
from loomgate.bus import State
from loomgate.bus.local import LocalBus


async def _state() -> State:
    return State([], over=False)


async def _cancelled_with(task: "asyncio.Task[object]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


def test_of_a_wait() -> None:
    async def main() -> None:
        event = asyncio.Event()
        task: asyncio.Task[object] = asyncio.create_task(clock.wait(event, 60))
        await asyncio.sleep(0.01)
        event.set()
        # One turn of the loop: whoever waits inside has seen the event, whoever waits for that one has not.
        await asyncio.sleep(0)
        if not task.done():
            await _cancelled_with(task)

    asyncio.run(main())


def test_of_a_sleep() -> None:
    async def main() -> None:
        for turns in range(4):
            task: asyncio.Task[object] = asyncio.create_task(clock.sleep(60))
            await asyncio.sleep(0.01)
            clock.advance(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            await _cancelled_with(task)

    asyncio.run(main())


def test_of_a_viewer() -> None:
    async def main() -> None:
        bus = LocalBus(retention_seconds=60, retention_bytes=1000)
        for turns in range(4):
            viewer = await bus.subscribe("run_x", _state, fresh=True)
            task: asyncio.Task[object] = asyncio.create_task(viewer.next(60))
            await asyncio.sleep(0.01)
            bus.publish("run_x", [b"event"])
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.done():
                await _cancelled_with(task)
            viewer.close()

    asyncio.run(main())
