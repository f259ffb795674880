"""Time moves when a test says so, and waiting for it can always be broken off."""

import asyncio
import threading

import pytest

from loomgate import clock
from tests.support.waiting import settle

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_offset", clock._offset)


@pytest.mark.behaviour("CONV-04")
async def test_timestamps_are_whole_seconds_of_now() -> None:
    before = clock.now()
    stamp = clock.timestamp()
    assert isinstance(stamp, int)
    assert int(before) <= stamp <= clock.now()


async def test_advance_moves_now_and_leaves_the_monotonic_clock() -> None:
    now, monotonic = clock.now(), clock.monotonic()
    clock.advance(1000)
    assert 1000 <= clock.now() - now < 1010
    assert clock.monotonic() - monotonic < 10


async def test_sleep_ends_when_time_has_moved_on() -> None:
    sleeper = asyncio.create_task(clock.sleep(1000))
    await settle()
    clock.advance(999)
    await settle()
    assert not sleeper.done()
    clock.advance(1.1)
    async with asyncio.timeout(5):
        await sleeper


async def test_sleep_of_nothing_gives_the_others_their_turn() -> None:
    turns: list[str] = []
    other = asyncio.create_task(_note(turns))
    await clock.sleep(0)
    assert turns == ["other"]
    await other


async def _note(turns: list[str]) -> None:
    turns.append("other")


async def test_wait_ends_by_its_event_or_by_time() -> None:
    event = asyncio.Event()
    waiter = asyncio.create_task(clock.wait(event, 1000))
    await settle()
    event.set()
    async with asyncio.timeout(5):
        await waiter
    event.clear()
    await clock.wait(event, 0.001)
    assert not event.is_set()


async def test_advance_wakes_every_waiter_of_one_event() -> None:
    event = asyncio.Event()
    first, second = (asyncio.create_task(clock.wait(event, 1000)) for _ in range(2))
    await settle()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    clock.advance(1)
    async with asyncio.timeout(5):
        await second


async def test_a_loop_that_waits_for_ever_can_be_ended_at_any_moment() -> None:
    async def forever(event: asyncio.Event) -> None:
        while True:
            await clock.wait(event, 1000)
            event.clear()

    for turns in range(6):
        event = asyncio.Event()
        task = asyncio.create_task(forever(event))
        await settle()
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await settle()
        assert task.cancelled(), f"cancelled {turns} turns after the event"


async def test_advance_reaches_a_loop_in_another_thread() -> None:
    started = threading.Event()

    async def sleeps() -> None:
        asyncio.get_running_loop().call_soon(started.set)
        await clock.sleep(1000)

    thread = threading.Thread(target=lambda: asyncio.run(sleeps()))
    thread.start()
    await asyncio.to_thread(started.wait, 5)
    clock.advance(1001)
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()
