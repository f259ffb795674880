"""The bus: what a viewer gets, from when on, for how long it is kept, and when the stream is over."""

import asyncio

import pytest

from loomgate import clock
from loomgate.bus import State, Subscription
from loomgate.bus.local import LocalBus, LocalSubscription
from loomgate.wire.events import DONE, frame

pytestmark = pytest.mark.anyio

RUN = "run_one"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def make_bus(seconds: float = 60, size: int = 1 << 20) -> LocalBus:
    return LocalBus(retention_seconds=seconds, retention_bytes=size)


def event(number: int, size: int = 0) -> bytes:
    return frame("thread.message.delta", b"%d" % number + b"." * size)


async def nothing() -> State:
    return State([], over=False)


async def subscribe(bus: LocalBus, run: str = RUN, *, fresh: bool = False) -> LocalSubscription:
    return await bus.subscribe(run, nothing, fresh=fresh)


async def resume(bus: LocalBus, run: str, id: str | None) -> LocalSubscription | None:
    return await bus.resume(run, id, nothing)


async def attach(
    bus: LocalBus, run: str = RUN, state: list[bytes] | None = None, *, over: bool = False
) -> LocalSubscription:
    async def look() -> State:
        return State(state or [], over=over)

    return await bus.attach(RUN, look)


async def begun(
    bus: LocalBus, run: str = RUN, *, count: int = 0, size: int = 0, settled: bool = False
) -> LocalSubscription:
    """A new run with ``count`` events, and the viewer who saw it begin."""
    viewer = await subscribe(bus, run, fresh=True)
    if count or settled:
        bus.publish(run, [event(n, size) for n in range(1, count + 1)], settled=settled)
    return viewer


def at_once(viewer: Subscription | None) -> list[bytes]:
    """All that is there for a viewer without waiting."""
    assert viewer is not None
    found: list[bytes] = []
    while (got := viewer.ready()) is not None:
        found.append(got[1])
        if got[1] is DONE:
            break
    return found


async def whole(viewer: Subscription | None) -> list[bytes]:
    """All that a viewer gets until its stream ends."""
    assert viewer is not None
    async with asyncio.timeout(5):
        return [data async for _, data in viewer]


def events(*numbers: int) -> list[bytes]:
    return [event(n) for n in numbers]


class TestViewers:
    async def test_all_viewers_get_the_same_bytes_in_order(self) -> None:
        bus = make_bus()
        first = await begun(bus)
        second = await attach(bus)
        bus.publish(RUN, events(1, 2))
        bus.publish(RUN, events(3), settled=True)
        assert await whole(first) == await whole(second) == [*events(1, 2, 3), DONE]

    async def test_runs_do_not_hear_of_each_other(self) -> None:
        bus = make_bus()
        one, two = await begun(bus, "run_a"), await begun(bus, "run_b")
        bus.publish("run_a", events(1))
        assert at_once(one) == events(1)
        assert at_once(two) == []

    async def test_a_viewer_that_waits_is_woken(self) -> None:
        bus = make_bus()
        viewer = await begun(bus)
        waits = asyncio.create_task(viewer.next(5))
        await asyncio.sleep(0)
        bus.publish(RUN, events(1))
        got = await waits
        assert got is not None
        assert got[1] == event(1)

    async def test_nothing_within_the_time_is_none_and_the_stream_goes_on(self) -> None:
        bus = make_bus()
        viewer = await begun(bus)
        assert await viewer.next(0.001) is None
        bus.publish(RUN, events(1))
        assert at_once(viewer) == events(1)

    async def test_a_cancelled_wait_loses_no_event(self) -> None:
        bus = make_bus()
        viewer = await begun(bus)
        waits = asyncio.create_task(viewer.next(5))
        await asyncio.sleep(0)
        waits.cancel()
        bus.publish(RUN, events(1))
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert at_once(viewer) == events(1)

    async def test_one_who_left_gets_nothing_and_disturbs_nobody(self) -> None:
        bus = make_bus()
        leaves, stays = await begun(bus), await attach(bus)
        bus.publish(RUN, events(1))
        leaves.close()
        leaves.close()
        bus.publish(RUN, events(2), settled=True)
        with pytest.raises(StopAsyncIteration):
            await leaves.next(1)
        assert await whole(stays) == [*events(1, 2), DONE]

    async def test_publishing_nothing_tells_nothing(self) -> None:
        bus = make_bus()
        viewer = await begun(bus)
        bus.publish(RUN, [])
        assert at_once(viewer) == []


@pytest.mark.behaviour("SSE-02", "SSE-03")
class TestDone:
    """`done` ends a stream, and nothing comes after it."""

    async def test_the_stream_ends_after_done(self) -> None:
        bus = make_bus()
        viewer = await begun(bus, count=1, settled=True)
        assert await whole(viewer) == [event(1), DONE]
        with pytest.raises(StopAsyncIteration):
            await viewer.next(1)

    async def test_a_request_that_changes_the_run_looks_on_until_the_next_done(self) -> None:
        """The stream of a submission begins after the wait for it, and its own end is the next one."""
        bus = make_bus()
        first = await begun(bus, count=2, settled=True)
        submits = await subscribe(bus)
        bus.publish(RUN, events(3))
        bus.publish(RUN, events(4), settled=True)
        bus.publish(RUN, events(5), settled=True)
        assert await whole(first) == [*events(1, 2), DONE]
        assert await whole(submits) == [*events(3, 4), DONE]

    async def test_a_late_viewer_passes_over_the_waits_of_a_run_that_went_on(self) -> None:
        bus = make_bus()
        await begun(bus, count=2, settled=True)
        bus.publish(RUN, events(3))
        late = await resume(bus, RUN, None)
        assert at_once(late) == events(1, 2, 3)
        bus.publish(RUN, events(4), settled=True)
        assert at_once(late) == [event(4), DONE]

    async def test_a_late_viewer_of_a_run_that_still_waits_is_not_kept(self) -> None:
        bus = make_bus()
        await begun(bus, count=2, settled=True)
        assert await whole(await resume(bus, RUN, None)) == [*events(1, 2), DONE]

    async def test_a_prelude_comes_first_and_may_be_all(self) -> None:
        bus = make_bus()
        await begun(bus, count=1)
        goes_on, over = await attach(bus, state=events(7, 8)), await attach(bus, state=events(9), over=True)
        bus.publish(RUN, events(2), settled=True)
        assert await whole(goes_on) == [*events(7, 8, 2), DONE]
        assert await whole(over) == [event(9), DONE]


class TestResume:
    """Whoever comes back with the id of the last event it saw misses none and sees none twice."""

    async def test_from_every_id(self) -> None:
        bus = make_bus()
        viewer = await begun(bus, count=6)
        ids = [found[0] for _ in range(6) if (found := viewer.ready()) is not None]
        assert len(set(ids)) == 6
        bus.publish(RUN, events(7), settled=True)
        for seen, id in enumerate(ids, start=1):
            assert await whole(await resume(bus, RUN, id)) == [*events(*range(seen + 1, 8)), DONE]
        assert await whole(await resume(bus, RUN, None)) == [*events(*range(1, 8)), DONE]

    async def test_ids_go_on_where_they_were(self) -> None:
        bus = make_bus()
        first = await begun(bus, count=3)
        ids = [found[0] for _ in range(3) if (found := first.ready()) is not None]
        again = await resume(bus, RUN, ids[0])
        assert again is not None
        got = [again.ready() for _ in range(2)]
        assert [found and found[0] for found in got] == ids[1:]

    async def test_a_prelude_is_seen_whole_or_comes_again(self) -> None:
        """Whose connection breaks inside of it gets the state once more; who has all of it goes on from there."""
        bus = make_bus()
        await begun(bus, count=3)
        viewer = await attach(bus, state=events(90, 91))
        bus.publish(RUN, events(4))
        inside, end, after = [found[0] for _ in range(3) if (found := viewer.ready()) is not None]
        assert await resume(bus, RUN, inside) is None
        assert at_once(await resume(bus, RUN, end)) == events(4)
        assert at_once(await resume(bus, RUN, after)) == []

    @pytest.mark.parametrize(
        "id", ["", "-", "5", "other-1", "nonsense", "{epoch}-", "{epoch}-x", "{epoch}--1", "{epoch}-99"]
    )
    async def test_an_id_that_is_not_kept_is_said_so(self, id: str) -> None:
        bus = make_bus()
        await begun(bus, count=3)
        epoch = bus.id_of(1).partition("-")[0]
        assert await resume(bus, RUN, id.format(epoch=epoch)) is None

    async def test_ids_of_another_process_are_not_taken_for_ours(self) -> None:
        before = make_bus()
        clock.advance(1)
        bus = make_bus()
        await begun(bus, count=3)
        assert await resume(bus, RUN, before.id_of(1)) is None
        assert await resume(bus, RUN, bus.id_of(1)) is not None

    async def test_an_unknown_run_is_said_so(self) -> None:
        bus = make_bus()
        assert await resume(bus, "run_unknown", None) is None
        assert await resume(bus, "run_unknown", bus.id_of(1)) is None

    async def test_a_run_that_was_not_created_leaves_nothing(self) -> None:
        bus = make_bus()
        viewer = await begun(bus)
        bus.drop(RUN)
        viewer.close()
        bus.drop(RUN)
        assert await resume(bus, RUN, None) is None
        assert (bus._channels, bus._size) == ({}, 0)


class TestBeginnings:
    """A channel that was opened in the middle of a run (by a server that came after the one that began it) is not its
    beginning, and nobody who saw the beginning is taken for one who saw this."""

    async def test_the_middle_is_no_beginning(self) -> None:
        bus = make_bus()
        bus.publish(RUN, events(5))
        assert await resume(bus, RUN, None) is None
        assert await resume(bus, RUN, bus.id_of(0)) is None
        late = await attach(bus)
        bus.publish(RUN, events(6), settled=True)
        assert await whole(late) == [event(6), DONE]

    async def test_events_without_a_viewer_can_be_the_beginning(self) -> None:
        bus = make_bus()
        bus.publish(RUN, events(1), first=True)
        assert at_once(await resume(bus, RUN, None)) == events(1)

    async def test_ids_are_not_given_again_when_a_channel_was_forgotten(self) -> None:
        bus = make_bus(seconds=10)
        viewer = await begun(bus, count=3, settled=True)
        ids = [found[0] for _ in range(3) if (found := viewer.ready()) is not None]
        viewer.close()
        clock.advance(11)
        await begun(bus, "run_other", count=1)  # whoever publishes next tidies up
        assert await resume(bus, RUN, ids[-1]) is None
        bus.publish(RUN, events(4, 5, 6, 7, 8))
        assert not any([await resume(bus, RUN, id) for id in ids]), "it missed nothing that it could be given"

    async def test_a_late_viewer_of_a_run_that_is_over_leaves_nothing_behind(self) -> None:
        bus = make_bus()
        for _ in range(2):
            assert await resume(bus, RUN, None) is None
            viewer = await attach(bus, state=events(9), over=True)
            assert await whole(viewer) == [event(9), DONE]
        assert not bus._channels


class TestRetention:
    """Events of runs that settled are kept for a while; of those that go on, as much as there is room for."""

    async def test_what_settled_is_forgotten_after_its_time(self) -> None:
        bus = make_bus(seconds=60)
        (await begun(bus, "run_old", count=1, settled=True)).close()
        clock.advance(40)
        (await begun(bus, "run_newer", count=1, settled=True)).close()
        old = await resume(bus, "run_old", None)
        assert old is not None
        old.close()
        clock.advance(21)
        (await begun(bus, "run_last", count=1, settled=True)).close()
        assert await resume(bus, "run_old", None) is None
        assert await resume(bus, "run_newer", None) is not None

    async def test_a_run_that_goes_on_does_not_age(self) -> None:
        bus = make_bus(seconds=60)
        (await begun(bus, count=1)).close()
        clock.advance(1000)
        (await begun(bus, "run_other", count=1, settled=True)).close()
        assert at_once(await resume(bus, RUN, None)) == events(1)

    async def test_a_run_that_went_on_after_its_wait_does_not_age(self) -> None:
        bus = make_bus(seconds=60)
        (await begun(bus, count=1, settled=True)).close()
        bus.publish(RUN, events(2))
        clock.advance(1000)
        (await begun(bus, "run_other", count=1, settled=True)).close()
        assert at_once(await resume(bus, RUN, None)) == events(1, 2)

    async def test_too_much_goes_oldest_first(self) -> None:
        bus = make_bus(size=10_000)
        for n in range(20):
            (await begun(bus, f"run_{n}", count=1, size=1000, settled=True)).close()
        kept = [n for n in range(20) if await resume(bus, f"run_{n}", None) is not None]
        assert bus._size == sum(channel.size for channel in bus._channels.values()) <= 10_000
        assert 5 <= len(kept) <= 9
        assert kept == list(range(20 - len(kept), 20))

    async def test_small_events_count_with_what_they_cost(self) -> None:
        bus = make_bus(size=10_000)
        (await begun(bus, "run_many", count=1000, settled=True)).close()
        (await begun(bus, "run_last", count=1, settled=True)).close()
        assert await resume(bus, "run_last", None) is not None
        assert await resume(bus, "run_many", None) is None, "a thousand events of some forty bytes are more than 10,000"

    async def test_what_somebody_looks_at_is_kept(self) -> None:
        bus = make_bus(size=5_000, seconds=60)
        slow = await begun(bus, "run_watched", count=3, size=1000, settled=True)
        for n in range(10):
            (await begun(bus, f"run_{n}", count=1, size=1000, settled=True)).close()
        clock.advance(1000)
        (await begun(bus, "run_last", count=1, settled=True)).close()
        assert len(await whole(slow)) == 4

    async def test_a_long_run_that_nobody_looks_at_loses_its_older_half(self) -> None:
        bus = make_bus(size=10_000)
        viewer = await begun(bus, count=1)
        found = viewer.ready()
        assert found is not None
        first_id = found[0]
        viewer.close()
        for n in range(2, 40):
            bus.publish(RUN, [event(n, 1000)])
        assert await resume(bus, RUN, first_id) is None, "it is said so, instead of leaving a gap"
        assert await resume(bus, RUN, None) is None
        assert bus._size <= 10_000
        assert at_once(await resume(bus, RUN, bus.id_of(38))) == [event(39, 1000)], "the newest are kept"
        stays = await attach(bus)
        bus.publish(RUN, events(40), settled=True)
        assert await whole(stays) == [event(40), DONE]

    async def test_a_viewer_of_a_long_run_misses_nothing(self) -> None:
        bus = make_bus(size=5_000)
        viewer = await begun(bus)
        for n in range(1, 40):
            bus.publish(RUN, [event(n, 1000)])
        bus.publish(RUN, [], settled=True)
        assert await whole(viewer) == [*(event(n, 1000) for n in range(1, 40)), DONE]


class TestWorkers:
    async def test_a_poke_wakes_the_worker(self) -> None:
        bus = make_bus()
        assert not bus.alarm.is_set()
        bus.poke()
        assert bus.alarm.is_set()

    async def test_a_signal_names_the_run_and_wakes_the_worker(self) -> None:
        bus = make_bus()
        heard: list[str] = []
        bus.listeners.append(heard.append)
        bus.signal(RUN)
        assert heard == [RUN]
        assert bus.alarm.is_set()


async def test_a_worker_knows_what_was_told_of_a_run_from_its_beginning_on() -> None:
    bus = make_bus()
    assert await bus.told(RUN, 2) is None, "nobody was told of it here"
    await begun(bus, count=2, settled=True)
    bus.publish(RUN, events(3))
    assert await bus.told(RUN, 2) == events(1, 2, 3)
    bus.drop(RUN)
    bus.publish(RUN, events(4))
    assert await bus.told(RUN, 2) is None, "its beginning is not known"


async def test_an_error_of_before_does_not_stop_who_looks_on_when_the_run_goes_on() -> None:
    bus = make_bus()
    before = await begun(bus, count=1)
    given_back = frame("error", b"{}")
    bus.publish(RUN, [given_back], settled=True)
    told = [event(1), given_back, DONE]
    assert await whole(before) == await whole(await resume(bus, RUN, None)) == told
    bus.publish(RUN, events(2), settled=True)
    assert await whole(await resume(bus, RUN, None)) == [*events(1, 2), DONE]
