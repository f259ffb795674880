"""Time that tests can move: `advance` moves what is stored and wakes what waits, and nothing else does."""

import asyncio
import threading

import pytest

from loomgate import clock

pytestmark = pytest.mark.anyio

LONG = 100_000.0  # nobody waits that long for a test


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def woken(task: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(5):
        await task


async def begun(*tasks: "asyncio.Task[None]") -> None:
    """Let ``tasks`` run until they wait."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


@pytest.mark.behaviour("CONV-04")
def test_a_timestamp_is_now_in_whole_seconds() -> None:
    before = clock.now()
    stamp = clock.timestamp()
    assert isinstance(stamp, int)
    assert int(before) <= stamp <= clock.now()


def test_advance_moves_wall_time_and_not_the_stop_watch() -> None:
    wall, watch = clock.now(), clock.monotonic()
    clock.advance(LONG)
    assert LONG <= clock.now() - wall < LONG + 60
    assert 0 <= clock.monotonic() - watch < 60


async def test_a_sleep_ends_when_its_time_has_come_and_not_before() -> None:
    task = asyncio.create_task(clock.sleep(LONG))
    await begun(task)
    clock.advance(LONG / 2)
    await begun(task)
    clock.advance(LONG / 2)
    await woken(task)


async def test_a_real_sleep_is_as_long_as_it_says() -> None:
    before = clock.monotonic()
    await clock.sleep(0.02)
    assert clock.monotonic() - before >= 0.019


@pytest.mark.parametrize("seconds", [0, -1])
async def test_no_time_gives_the_others_their_turn_once(seconds: float) -> None:
    order: list[str] = []

    async def other() -> None:
        order.append("other")
        await asyncio.sleep(0)
        order.append("other again")

    task = asyncio.create_task(other())
    await clock.sleep(seconds)
    order.append("slept")
    await task
    assert order == ["other", "slept", "other again"]


async def test_a_wait_ends_with_its_event() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(clock.wait(event, LONG))
    await begun(task)
    event.set()
    await woken(task)


async def test_a_wait_ends_with_its_time() -> None:
    event = asyncio.Event()
    before = clock.monotonic()
    await clock.wait(event, 0.02)
    assert clock.monotonic() - before >= 0.019
    assert not event.is_set()


async def test_a_jump_ends_a_wait_so_that_it_looks_again() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(clock.wait(event, LONG))
    await begun(task)
    clock.advance(1)
    await woken(task)


async def test_a_wait_that_is_cancelled_is_woken_no_more() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(clock.wait(event, LONG))
    await begun(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    clock.advance(1)
    await asyncio.sleep(0)
    assert not event.is_set()


async def test_a_jump_wakes_sleepers_on_other_loops() -> None:
    """A server under test runs on a loop in a thread of its own."""
    ready, done = threading.Event(), threading.Event()

    async def sleeper() -> None:
        task = asyncio.create_task(clock.sleep(LONG))
        await begun(task)
        ready.set()
        await task
        done.set()

    thread = threading.Thread(target=lambda: asyncio.run(sleeper()), daemon=True)
    thread.start()
    here = asyncio.create_task(clock.sleep(LONG))
    assert await asyncio.to_thread(ready.wait, 5)
    await begun(here)
    clock.advance(LONG + 1)
    await woken(here)
    assert await asyncio.to_thread(done.wait, 5)
    thread.join(5)


async def test_a_jump_wakes_every_waiter_of_one_event() -> None:
    event = asyncio.Event()
    first, second = (asyncio.create_task(clock.wait(event, LONG)) for _ in range(2))
    await begun(first, second)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    clock.advance(1)
    await woken(second)


async def test_a_loop_that_waits_for_ever_can_be_ended_at_any_moment() -> None:
    """Also in the moment in which the event that it waits for comes."""

    async def forever(event: asyncio.Event) -> None:
        while True:
            await clock.wait(event, LONG)
            event.clear()

    for turns in range(6):
        event = asyncio.Event()
        task = asyncio.create_task(forever(event))
        await begun(task)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled(), f"cancelled {turns} turns after the event"
