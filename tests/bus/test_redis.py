"""The bus between nodes, over a real Valkey: one order everywhere, nothing skipped in silence, nothing that hangs."""

import asyncio
import logging
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from loomgate import clock
from loomgate.bus import Held, viewing
from loomgate.bus.connection import Redis
from loomgate.bus.entries import FIRST, Entry, Order, parsed
from loomgate.bus.redis import RedisBus
from loomgate.errors import RedisAway
from loomgate.wire.events import DONE, frame
from tests.bus.nodes import Nodes, Run, event, events, nodes, numbers, soon, state_of, take, told, whole
from tests.support.engines import RedisServer, folder

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def made(redis_url: str) -> AsyncIterator[Nodes]:
    async with nodes(redis_url, f"test-{secrets.token_hex(4)}") as found:
        yield found


@pytest.fixture(scope="module")
def own_server() -> Iterator[RedisServer]:
    with folder() as place:
        server = RedisServer(place)
        server.start()
        yield server
        server.stop()


@pytest.fixture
async def own(own_server: RedisServer) -> AsyncIterator[Nodes]:
    """Nodes on a Valkey that the test may stop."""
    if own_server._process is None:
        own_server.start()
    async with nodes(own_server.url, f"test-{secrets.token_hex(4)}") as found:
        yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "_DOUBT_SECONDS", 0.2)
    monkeypatch.setattr(viewing, "_AWAY_SECONDS", 0.2)


async def redis_of(nodes: Nodes, *command: Any) -> Any:
    return await nodes._redis[0].call(*command)


class TestOneOrder:
    async def test_viewers_on_every_node_see_the_same_under_the_same_ids(self, made: Nodes) -> None:
        a, b, c = [await made.add() for _ in range(3)]
        run, first = await made.begun(a)
        viewers = [first]
        for bus in (b, c):
            await soon(lambda: _kept(made, run))
            found = await bus.resume(run.id, None, run.look)
            assert found is not None
            viewers.append(found)
        for n in range(60):  # three nodes tell at once: what order they come in is for Redis to say
            run.tell((a, b, c)[n % 3])
            if n % 7 == 0:
                await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        run.tell(b, settled=True)
        seen = [await take(viewer, 63) for viewer in viewers]
        assert seen[0] == seen[1] == seen[2]
        assert sorted(numbers([data for _, data in seen[0]])) == list(range(1, 63))

    async def test_one_comes_back_to_another_node(self, made: Nodes) -> None:
        a, b, c = [await made.add() for _ in range(3)]
        run, viewer = await made.begun(a)
        run.driver = b
        run.tell(b, 5)
        run.tell(b, 4)
        seen = await take(viewer, 10)
        viewer.close()
        run.tell(b, 3)
        back = await c.resume(run.id, seen[6][0], run.look)
        assert await told(back, 6) == events(*range(8, 14))
        run.tell(b, settled=True)
        assert await whole(back) == [event(14), DONE]

    async def test_the_beginning_is_the_first_although_another_node_was_quicker(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        run = made.run()
        viewer = await a.subscribe(run.id, run.look, fresh=True)
        b.publish(run.id, events(2), fence=1)
        await asyncio.sleep(0.05)
        a.publish(run.id, events(1), first=True)
        assert await told(viewer, 2) == events(1, 2)

    async def test_a_stream_that_never_began_here_begins_in_the_middle(self, made: Nodes) -> None:
        bus = await made.add()
        run = made.run()
        run.driver = bus
        viewer = await bus.attach(run.id, run.look)
        run.told = 7
        run.tell(bus, fence=3)
        seen = await told(viewer, 2)
        assert seen == state_of(8)
        run.tell(bus, settled=True, fence=3)
        assert (await whole(viewer))[-2:] == [event(9), DONE]
        assert await bus.resume(run.id, None, run.look) is None, "that is not the run's beginning"

    async def test_the_words_of_a_worker_that_lost_the_run_are_not_heard(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        run, viewer = await made.begun(a)
        run.tell(a, fence=1)
        assert await told(viewer, 2) == events(1, 2)
        run.tell(b, fence=2)
        assert await told(viewer, 1) == events(3)
        a.publish(run.id, events(90, 91), fence=1)
        await asyncio.sleep(0.05)
        run.tell(b, fence=2, settled=True)
        assert await whole(viewer) == [event(4), DONE]

    async def test_a_submission_hears_nothing_of_before(self, made: Nodes) -> None:
        """The end of what was before may come late, from another node: it is not the end of this stream. And the next
        worker may be quicker than the node that woke it."""
        a, b, c = [await made.add() for _ in range(3)]
        run, first = await made.begun(a)
        await take(first, 1)
        submits = await b.subscribe(run.id, run.look)
        mark = await b.subscribe(run.id, run.look)
        assert isinstance(mark, viewing.RedisSubscription)
        assert isinstance(submits, viewing.RedisSubscription)
        b.publish("run_other", events(1), viewer=submits)  # it knows what it waits for
        mark.close()
        run.tell(a, settled=True, fence=1)
        assert await whole(first) == [event(2), DONE]
        c.publish(run.id, events(4, 5), fence=2)
        assert await submits.next(0.1) is None
        b._publisher.put(run.id, events(3), mark=submits._mark)  # type: ignore[attr-defined]
        seen = await take(submits, 3)
        assert [data for _, data in seen] == events(3, 4, 5)
        assert parsed(seen[0][0]) is parsed(seen[1][0]) is None, "who breaks off here gets the state"
        c.publish(run.id, events(6), settled=True, fence=2)
        assert await whole(submits) == [event(6), DONE]


async def _kept(nodes: Nodes, run: Run) -> bool:
    return bool(await redis_of(nodes, "EXISTS", f"{nodes.prefix}:run:{run.id}"))


class TestPresentState:
    async def test_the_node_that_drives_it_knows_more_than_the_store(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        run, viewer = await made.begun(b, count=3)
        await take(viewer, 3)
        for bus in (a, b):
            late = await bus.attach(run.id, run.look)
            assert await told(late, 2) == state_of(run.told)
            run.tell(b, 2)
            assert await told(late, 2) == events(run.told - 1, run.told)
        assert await told(viewer, 4) == events(4, 5, 6, 7), "who did not ask does not hear of it"

    async def test_it_has_its_place_in_the_order(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        run, viewer = await made.begun(b)
        telling = asyncio.create_task(_tell_on(run, b, 300))
        late = [await a.attach(run.id, run.look) for _ in range(5)]
        found = await asyncio.gather(*(whole(each) for each in late))
        await telling
        assert numbers(await whole(viewer)) == list(range(1, 302))
        for seen in found:
            got = numbers(seen)
            assert got == list(range(got[0], 302))

    async def test_when_nobody_answers_it_is_the_stored_one(self, made: Nodes) -> None:
        bus, gone = await made.add(), await made.add()
        run, viewer = await made.begun(gone, count=2)
        await take(viewer, 2)
        gone.held = lambda _: None
        before = clock.monotonic()
        late = await bus.attach(run.id, run.look)
        assert await told(late, 2) == state_of(2)
        assert 0.9 < clock.monotonic() - before < 4
        run.tell(gone, settled=True)
        assert await whole(late) == [event(3), DONE]

    async def test_what_nobody_holds_is_told_at_once(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus, count=2)
        await take(viewer, 2)
        run.driver = None
        before = clock.monotonic()
        assert await told(await bus.attach(run.id, run.look), 2) == state_of(2)
        assert clock.monotonic() - before < 0.8


async def _tell_on(run: Run, bus: Any, count: int) -> None:
    for n in range(count):
        run.tell(bus, settled=n == count - 1, fence=1)
        await asyncio.sleep(0.001 if n % 5 == 0 else 0)


class TestWhatIsMissing:
    async def test_a_trimmed_place_is_said_to_be_gone(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        (id, _), *_ = await take(viewer, 1)
        run.tell(bus, 5)
        await take(viewer, 5)
        await redis_of(made, "XTRIM", f"{made.prefix}:run:{run.id}", "MAXLEN", 1)
        assert await bus.resume(run.id, id, run.look) is None
        assert await bus.resume(run.id, None, run.look) is None
        assert await told(await bus.join(run.id, id, run.look), 2) == state_of(6)

    async def test_a_missing_entry_is_noticed(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        run, viewer = await made.begun(a)
        assert await told(viewer, 1) == events(1)
        assert isinstance(a, RedisBus)
        a._publisher._numbering(run.id).number += 1  # as if one had been lost on its way
        run.told += 1
        run.tell(a, 2)
        assert await told(viewer, 2) == state_of(4)
        run.tell(a, settled=True)
        assert await whole(viewer) == [event(5), DONE]
        assert b is not a

    async def test_an_entry_that_came_twice_is_told_once(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        key = f"{made.prefix}:run:{run.id}"
        ((_, fields),) = await redis_of(made, "XREVRANGE", key, "+", "-", "COUNT", 1)
        await redis_of(made, "XADD", key, "*", *fields)
        run.tell(bus)
        assert await told(viewer, 1) == events(2)
        assert await told(await bus.resume(run.id, None, run.look), 2) == events(1, 2)
        ((_, fields),) = await redis_of(made, "XREVRANGE", key, "+", "-", "COUNT", 1)
        await redis_of(made, "XADD", key, "*", *fields)
        run.tell(bus, settled=True)
        ((_, fields),) = await redis_of(made, "XREVRANGE", key, "+", "-", "COUNT", 1)
        await redis_of(made, "XADD", key, "*", *fields)
        assert await whole(await bus.resume(run.id, None, run.look)) == [*events(1, 2, 3), DONE]

    async def test_what_does_not_fit_is_given_up_as_a_whole(self, made: Nodes) -> None:
        """A burst larger than the queue: the viewer gets the state in its place, and then what follows."""
        bus = await made.add(size=20_000)
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        run.tell(bus, 30, size=2000)
        run.tell(bus, 2)
        await asyncio.sleep(0.1)
        run.tell(bus, settled=True)
        seen = numbers(await whole(viewer))
        assert seen[-1] == 34
        assert seen == list(range(seen[0], 35))

    async def test_a_foreign_entry_is_a_gap(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        await redis_of(made, "XADD", f"{made.prefix}:run:{run.id}", "*", "what", "is this")
        assert await told(viewer, 2) == state_of(1)

    async def test_a_slow_viewer_reads_the_stream_again(self, made: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(viewing, "_BUFFER", 2000)
        monkeypatch.setattr(viewing, "_MOST", 4000)
        bus = await made.add()
        run, slow = await made.begun(bus)
        quick = await bus.resume(run.id, None, run.look) or await bus.attach(run.id, run.look)
        for _ in range(200):
            run.tell(bus, size=100, fence=1)
            await take(quick, 1)
        channel = bus._channels[run.id]  # type: ignore[attr-defined]
        assert channel.size <= 4000 + 400
        run.tell(bus, settled=True, fence=1)
        assert numbers(await whole(slow)) == list(range(1, 203))

    async def test_a_run_that_is_over_without_a_word_ends(self, made: Nodes, impatient: None) -> None:
        """Whoever should have told it died after its commit."""
        a, b = await made.add(), await made.add()
        run, viewer = await made.begun(b)
        late = await a.resume(run.id, None, run.look) or await a.attach(run.id, run.look)
        await take(viewer, 1)
        run.over = True
        run.told = 9
        assert (await whole(viewer))[-3:] == [*state_of(9), DONE]
        assert (await whole(late))[-3:] == [*state_of(9), DONE]

    async def test_nothing_is_created_twice_before_one_viewer(self, made: Nodes) -> None:
        """A state in the middle of a stream: the Node SDK throws at a message that is created again."""
        bus = await made.add()
        created = [frame("thread.message.created", b'{"id":"msg_%b"}' % name) for name in (b"a", b"b")]
        run, viewer = await made.begun(bus)
        bus.publish(run.id, created[:1])
        await take(viewer, 2)
        bus.held = lambda _: Held([*created, *state_of(9)], 1)
        await redis_of(made, "XADD", f"{made.prefix}:run:{run.id}", "*", "what", "is this")
        assert await told(viewer, 3) == [created[1], *state_of(9)]
        late = await bus.attach(run.id, run.look)
        assert await told(late, 4) == [*created, *state_of(9)]

    async def test_who_takes_a_run_over_learns_what_viewers_were_told(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        run, viewer = await made.begun(a, count=2)
        await take(viewer, 2)
        assert await b.told(run.id, 2) == events(1, 2)
        a.publish(run.id, events(90), fence=1)  # it did not know yet
        assert await b.told(run.id, 2) == events(1, 2)
        run.tell(b, settled=True, fence=2)
        assert await whole(viewer) == [event(3), DONE]
        await redis_of(made, "XTRIM", f"{made.prefix}:run:{run.id}", "MAXLEN", 1)
        assert await b.told(run.id, 3) is None


class TestWorkers:
    async def test_a_signal_reaches_the_other_nodes_at_once(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        heard: list[str] = []
        b.listeners.append(heard.append)
        await soon(lambda: not a.deaf() and not b.deaf())
        before = clock.monotonic()
        a.signal("run_one")
        await soon(lambda: heard == ["run_one"])
        assert clock.monotonic() - before < 0.5
        assert b.alarm.is_set()

    async def test_a_poke_goes_to_others_only_when_there_is_no_room_here(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        b.room = lambda: True
        await soon(lambda: not b.deaf())
        a.room = lambda: True
        a.poke()
        a.changed("told after it")
        heard: list[str] = []
        b.on_changed.append(heard.append)
        await soon(lambda: bool(heard))
        assert not b.alarm.is_set()
        a.room = lambda: False
        a.poke()
        await soon(b.alarm.is_set)

    async def test_one_without_room_is_not_woken(self, made: Nodes) -> None:
        a, b = await made.add(), await made.add()
        heard: list[str] = []
        b.on_changed.append(heard.append)
        await soon(lambda: not b.deaf())
        a.poke()
        a.changed("keys")
        await soon(lambda: heard == ["keys"])
        assert not b.alarm.is_set()

    async def test_deafness_is_said_once(self, own: Nodes, own_server: RedisServer) -> None:
        bus = await own.add()
        heard: list[str] = []
        bus.on_changed.append(heard.append)
        await soon(lambda: not bus.deaf())
        own_server.stop()
        await soon(bus.deaf)
        own_server.start()
        await soon(lambda: heard == [""], 10)
        assert bus.deaf(), "something may have been said meanwhile"
        assert not bus.deaf()


class TestRedisGoes:
    async def test_streams_resume_when_it_is_back(self, own: Nodes, own_server: RedisServer) -> None:
        a, b = await own.add(), await own.add()
        run, viewer = await own.begun(b)
        late = await a.resume(run.id, None, run.look) or await a.attach(run.id, run.look)
        await take(viewer, 1)
        ends = [asyncio.create_task(whole(each)) for each in (viewer, late)]
        own_server.stop()
        for _ in range(5):
            run.tell(b, 2, fence=1)
            await asyncio.sleep(0.05)
        own_server.start()
        await asyncio.sleep(1.5)
        run.tell(b, 2, fence=1)
        await asyncio.sleep(0.1)
        run.tell(b, settled=True, fence=1)
        for seen in await asyncio.gather(*ends):
            assert seen[-1] == DONE
            _follows(seen)  # who began anew with what was stored does so again as soon as the worker can be asked

    async def test_while_it_is_away_nothing_waits_and_runs_end(
        self, own: Nodes, own_server: RedisServer, impatient: None, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        a, b = await own.add(), await own.add()
        run, viewer = await own.begun(b)
        await take(viewer, 1)
        own_server.stop()
        before = clock.monotonic()
        for _ in range(2000):
            run.tell(b, fence=1)
        assert clock.monotonic() - before < 0.5
        late = await a.join(run.id, None, run.look)
        assert (await told(late, 2))[1] == state_of(2001)[1], "the stored state is better than nothing"
        other = own.run("run_two")
        fresh = await a.subscribe(other.id, other.look, fresh=True)
        a.publish(other.id, events(1), first=True)
        other.over = other.told = 1  # type: ignore[assignment]
        run.over = True
        assert (await whole(viewer))[-1] == DONE
        assert await whole(late) == [*state_of(2001), DONE]
        assert await whole(fresh) == [*state_of(1), DONE]
        assert clock.monotonic() - before < 6
        b.signal("run_one")
        b.poke()
        b.changed("x")
        assert len([record for record in caplog.records if "cannot be reached" in record.message]) == 2, "once a node"

    async def test_a_broken_connection_is_not_noticed_by_viewers(self, own: Nodes) -> None:
        a, b = await own.add(), await own.add()
        run, viewer = await own.begun(b)
        late = await a.resume(run.id, None, run.look) or await a.attach(run.id, run.look)
        admin = Redis(own.url or "")
        for n in range(40):
            run.tell(b, 2, fence=1)
            if n % 8 == 0:
                await admin.calls([("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes") for kind in ("normal", "pubsub")])
            await asyncio.sleep(0.01)
        run.tell(b, settled=True, fence=1)
        assert await whole(viewer) == [*events(*range(1, 83)), DONE]
        assert _follows(await whole(late))[-1] == 82
        await admin.close()

    async def test_a_server_that_hangs_blocks_nobody(self, own: Nodes, own_server: RedisServer) -> None:
        import os
        import signal

        bus = await own.add(patience=0.5)
        run, viewer = await own.begun(bus)
        await take(viewer, 1)
        os.kill(own_server.pid, signal.SIGSTOP)
        try:
            before = clock.monotonic()
            late = await bus.join("run_other", None, own.run("run_other").look)
            run.tell(bus, fence=1)
            assert clock.monotonic() - before < 3
            late.close()
            await soon(lambda: own._redis[0].away)
        finally:
            os.kill(own_server.pid, signal.SIGCONT)
        run.tell(bus, settled=True, fence=1)
        assert _follows(await whole(viewer), 1)[-1] == 3

    async def test_one_that_was_never_there(self, impatient: None) -> None:
        async with nodes("redis://127.0.0.1:1/0") as made:
            bus = await made.add()
            run, viewer = await made.begun(bus)
            assert (await told(viewer, 2))[1] == state_of(1)[1]
            run.tell(bus, settled=True)
            assert (await whole(viewer))[-1] == DONE
            with pytest.raises(RedisAway):
                await made._redis[0].call("GET", "x")


def _follows(seen: list[bytes], last: int = 0) -> list[int]:
    """Numbers without a gap after ``last``, or a new beginning with a state; gives them."""
    found = numbers(seen)
    place = 0
    for data in seen:
        if data == DONE or data.startswith(b":"):
            continue
        number = found[place]
        place += 1
        if data.startswith(b"event: thread.run"):
            assert number >= last, "a state does not go back"
        else:
            assert number == last + 1
        last = number
    return found


class TestMemory:
    async def test_nothing_is_left_of_a_run_without_viewers(self, made: Nodes) -> None:
        bus = await made.add()
        assert isinstance(bus, RedisBus)
        for n in range(20):
            run, viewer = await made.begun(bus, f"run_{n}")
            run.tell(bus, settled=True)
            if n % 2:
                await whole(viewer)
            else:
                viewer.close()
        publisher = bus._publisher
        await soon(lambda: not publisher._out)
        assert (bus._channels, publisher._size, dict(publisher._numberings)) == ({}, 0, {})

    async def test_streams_expire(self, made: Nodes) -> None:
        bus = await made.add(seconds=100)
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        key = f"{made.prefix}:run:{run.id}"
        assert 100 < await redis_of(made, "TTL", key) <= 126
        await redis_of(made, "EXPIRE", key, 5)
        run.tell(bus, settled=True)
        await whole(viewer)
        assert 100 < await redis_of(made, "TTL", key) <= 126

    async def test_streams_are_cut_to_about_their_size(self, made: Nodes) -> None:
        bus = await made.add(size=100_000)
        run, viewer = await made.begun(bus)
        for _ in range(400):
            run.tell(bus, size=1000)
            await take(viewer, 1)
        entries = await redis_of(made, "XLEN", f"{made.prefix}:run:{run.id}")
        assert 60 <= entries <= 250  # Redis cuts whole nodes of some hundred entries or 4 kB

    async def test_a_refusal_is_no_failure(self, made: Nodes) -> None:
        bus = await made.add()
        run, viewer = await made.begun(bus)
        await take(viewer, 1)
        key = f"{made.prefix}:run:{run.id}"
        await redis_of(made, "DEL", key)
        await redis_of(made, "SET", key, "a string")
        run.tell(bus, 2)
        await asyncio.sleep(0.1)
        await redis_of(made, "DEL", key)
        await soon(lambda: not bus._publisher._out)  # type: ignore[attr-defined]
        run.tell(bus, settled=True)
        assert _follows(await whole(viewer), 1)[-1] == 4


class TestOrder:
    @pytest.mark.parametrize(
        ("whole", "came", "judged"),
        [
            (True, [("first", 1, 0), ("a", 1, 0), ("a", 2, 0), ("b", 1, 0)], ["next", "next", "next", "next"]),
            (True, [("first", 1, 0), ("a", 2, 0)], ["next", "gap"]),
            (True, [("a", 1, 0), ("a", 2, 0)], ["gap", "next"]),
            (False, [("a", 2, 0), ("a", 2, 0), ("a", 1, 0), ("a", 4, 0)], ["next", "pass", "pass", "gap"]),
            (False, [("a", 5, 3), ("b", 1, 2), ("c", 1, 0), ("a", 6, 3)], ["next", "pass", "next", "next"]),
        ],
    )
    def test_it_judges(self, whole: bool, came: list[tuple[str, int, int]], judged: list[str]) -> None:
        order = Order(whole=whole)
        entries = [Entry(by, number, [], fence, FIRST if by == "first" else 0) for by, number, fence in came]
        assert [order.judge(entry) for entry in entries] == judged

    def test_ids(self) -> None:
        assert parsed("17-0-3") == ((17, 0), 3)
        assert parsed("17-0-state") is None


async def test_two_hundred_runs_at_once(made: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody misses anything; how fast it is, is printed."""
    a, b = await made.add(size=1 << 24), await made.add(size=1 << 24)
    begun = [await made.begun(a, f"run_{n}") for n in range(200)]
    for _, viewer in begun:
        await take(viewer, 1)
    latencies: list[float] = []
    run, viewer = begun[0]
    for _ in range(200):
        before = time.perf_counter()
        run.tell(b, fence=1)
        await take(viewer, 1)
        latencies.append(time.perf_counter() - before)
        await asyncio.sleep(0.0005)

    async def tell(run: Run) -> None:
        for _ in range(50):
            run.tell(b, size=100, fence=1)
            await asyncio.sleep(0)
        run.tell(b, settled=True, fence=1)

    before = time.perf_counter()
    seen = await asyncio.gather(*(whole(viewer, 30) for _, viewer in begun), *(tell(run) for run, _ in begun))
    seconds = time.perf_counter() - before
    for found in seen[1:200]:
        assert numbers(found or []) == list(range(2, 53))
    with capsys.disabled():
        print(
            f"\n  bus over Valkey: {200 * 52 / seconds:,.0f} events/s of 200 runs;"
            f" told to seen {statistics.median(latencies) * 1e6:.0f} us (median of 200, one at a time)"
        )
