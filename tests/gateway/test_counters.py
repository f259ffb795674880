"""What nodes count together in a real Redis: windows, places, and how they go on without it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loomgate import clock
from loomgate.gateway.config import Budget
from loomgate.gateway.counters import Counters, Place, Rate
from loomgate.gateway.limits import Limits, key_id
from loomgate.gateway.shared import AWAY, Script
from loomgate.wire.limits import KeyLimits, RateLimit
from tests.gateway.nodes import Nodes, nodes_at
from tests.support.engines import RedisServer, folder

pytestmark = pytest.mark.anyio

KEY = key_id("team", "openai-main")


@pytest.fixture
async def nodes(redis_url: str) -> AsyncIterator[Nodes]:
    async with nodes_at(redis_url) as made:
        yield made


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of the test's own, which it may stop."""
    with folder() as place:
        made = RedisServer(place)
        made.start()
        yield made
        made.stop()


def rates(*limits: RateLimit) -> KeyLimits:
    return KeyLimits(rate_limits=limits)


def budget(limits: KeyLimits, id: str = KEY) -> tuple[Budget, ...]:
    return (Budget(id, limits),)


# --- windows ---


@pytest.mark.behaviour("GERR-10")
async def test_two_nodes_admit_as_many_requests_as_one(nodes: Nodes) -> None:
    limits = [Limits(Counters(nodes.node())) for _ in range(2)]
    allowed = budget(rates(RateLimit(unit="rpd", value=37)))
    refused = await asyncio.gather(*(limits[number % 2].admitted(allowed) for number in range(200)))
    assert sum(one is None for one in refused) == 37
    told = next(one for one in refused if one is not None)
    assert (told.status, told.type, told.code) == (429, "requests", "rate_limit_exceeded")
    assert int(told.headers["retry-after"]) >= 1


async def test_a_window_ends_by_the_clock_of_redis(nodes: Nodes) -> None:
    one, other = (Counters(nodes.node(own_time=True)) for _ in range(2))
    rate = (Rate("short", 1, 3),)
    await asyncio.sleep(1 - time.time() % 1)  # noqa: TID251 - the clock of Redis, which is this machine's
    clock.advance(12345.0)  # a node whose own clock is wrong
    assert [(await each.enter(rate)).refused for each in (one, other, one, other)] == [None, None, None, 0]
    verdict = await other.enter(rate)
    wait = verdict.stands[0].wait(1, rate[0].room)
    assert 0 < wait < 2
    await asyncio.sleep(wait)
    assert (await other.enter(rate)).refused is None


async def test_names_are_below_the_prefix_and_expire(nodes: Nodes) -> None:
    counters = Counters(nodes.node())
    await counters.enter((Rate("r", 60, 3),), (Place("p", 3),), "me")
    client = nodes.client()
    names = sorted([name async for name in client.scan_iter(f"{nodes.prefix}*")])
    assert names == [f"{nodes.prefix}:{what}".encode() for what in ("at:p", "rate:r")]
    for name in names:
        assert 0 < await client.ttl(name) <= 120
    await counters.close()


async def test_tokens_of_all_nodes_count(nodes: Nodes) -> None:
    one, other = (Limits(Counters(nodes.node())) for _ in range(2))
    allowed = budget(rates(RateLimit(unit="rph", value=1000, type="tokens")))
    for each in (one, other):
        assert await each.admitted(allowed) is None
    one.spend(KEY, 0.0, 400)
    other.spend(KEY, 0.0, 600)
    await asyncio.sleep(0)
    refusals = [await each.admitted(allowed) for each in (other, one)]
    while not all(refusals):  # told on connections of their own
        await asyncio.sleep(0.01)
        refusals = [await each.admitted(allowed) for each in (other, one)]
    assert {one.type for one in refusals if one is not None} == {"tokens"}


async def test_a_request_that_one_of_two_limits_refuses_counts_for_neither(nodes: Nodes) -> None:
    both = (
        Budget(KEY, rates(RateLimit(unit="rpd", value=10))),
        Budget("team/integration/acme", rates(RateLimit(unit="rpm", value=2))),
    )
    for limits in (Limits(), Limits(Counters(nodes.node()))):
        assert [await limits.admitted(both) is None for _ in range(6)] == [True] * 2 + [False] * 4
        assert [await limits.admitted(both[:1]) is None for _ in range(9)] == [True] * 8 + [False]


_RATES = st.sampled_from(
    [
        (Rate("a", 60, 3),),
        (Rate("a", 60, 3), Rate("b", 3600, 5)),
        (Rate("b", 3600, 5), Rate("t", 60, 50, counts=False)),
        (Rate("a", 60, 1), Rate("a", 60, 3)),
        (),
    ]
)
_PLACES = st.sampled_from([(), (Place("x", 2),), (Place("x", 3), Place("y", 1))])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(0, 1), _RATES, _PLACES),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("add"), st.integers(0, 1), st.integers(0, 60)),
        st.tuples(st.just("wait"), st.floats(0, 90)),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_one_process_and_two_nodes_count_alike(redis_url: str, steps: list[tuple[object, ...]]) -> None:
    async def told() -> None:
        async with nodes_at(redis_url) as nodes, AsyncExitStack() as stack:
            alone = Counters()
            both = [Counters(nodes.node(), lease=10_000.0) for _ in range(2)]
            for each in both:
                stack.push_async_callback(each.close)
            there: list[tuple[Counters, tuple[Place, ...], str]] = []
            for number, step in enumerate(steps):
                if step[0] == "enter":
                    _, at, asked, places = step
                    here = alone.enter_here(asked, places, f"who{number}")  # type: ignore[arg-type]
                    shared = await both[at].enter(asked, places, f"who{number}")  # type: ignore[arg-type, call-overload, index]
                    # A hair's breadth of time passes between the two.
                    assert here.refused == shared.refused
                    for mine, theirs in zip(here.stands, shared.stands, strict=True):
                        assert mine[:2] == theirs[:2]
                        assert theirs.passed == pytest.approx(mine.passed, abs=0.5)
                    if here.refused is None:
                        there.append((both[at], places, f"who{number}"))  # type: ignore[arg-type, call-overload, index]
                elif step[0] == "leave" and there:
                    counters, places, who = there.pop(int(step[1]) % len(there))  # type: ignore[call-overload]
                    counters.leave(places, who)
                    alone.leave(places, who)
                    await counters.shared.ask("PING")  # type: ignore[union-attr]
                elif step[0] == "add":
                    amounts = [(Rate("t", 60, 50, counts=False), int(step[2]))]  # type: ignore[call-overload]
                    alone.add(amounts)
                    both[step[1]].add(amounts)  # type: ignore[call-overload, index]
                    await both[step[1]].shared.ask("PING")  # type: ignore[call-overload, index, union-attr]
                elif step[0] == "wait":
                    clock.advance(float(step[1]))  # type: ignore[arg-type]

    # A window must not begin between the two looks at the clock.
    left = 60 - clock.now() % 60
    clock.advance(left + 0.5 if left < 20 else 0)
    asyncio.run(told())


# --- places ---


async def test_places_are_those_of_all_nodes(nodes: Nodes) -> None:
    counters = [Counters(nodes.node()) for _ in range(3)]
    places = (Place("team", 5),)

    async def enter(number: int) -> str | None:
        who = f"w{number}"
        return who if (await counters[number % 3].enter((), places, who)).refused is None else None

    let_in = [who for who in await asyncio.gather(*map(enter, range(60))) if who]
    assert len(let_in) == 5
    leaving = let_in[0]
    by = counters[int(leaving[1:]) % 3]
    by.leave(places, leaving)
    assert by.shared is not None
    await by.shared.ask("PING")
    assert (await counters[0].enter((), places, "next")).refused is None
    assert (await counters[1].enter((), places, "too many")).refused == 0
    for each in counters:
        await each.close()


async def test_the_place_of_a_dead_node_is_free_after_its_lease(nodes: Nodes) -> None:
    dead, alive = (Counters(nodes.node(own_time=True), lease=0.6) for _ in range(2))
    places = (Place("team", 1),)
    assert (await dead.enter((), places, "a")).refused is None
    await asyncio.sleep(0.8)  # renewed meanwhile
    assert (await alive.enter((), places, "b")).refused == 0
    await dead.close()  # renews no more
    await asyncio.sleep(0.7)
    assert (await alive.enter((), places, "b")).refused is None
    await alive.close()


# --- without Redis ---


async def test_a_redis_that_goes_and_comes_back(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with nodes_at(server.url) as nodes:
        counters = Counters(nodes.node(seconds=0.3), lease=0.6)
        rate, places = (Rate("r", 86_400, 3),), (Place("p", 2),)
        assert (await counters.enter(rate, places, "a")).refused is None
        server.stop()
        with caplog.at_level(logging.WARNING):
            began = time.monotonic()
            # What this process has counted goes on counting.
            assert [(await counters.enter(rate)).refused for _ in range(4)] == [None, None, 0, 0]
            assert (await counters.enter((), places, "b")).refused is None
            assert (await counters.enter((), places, "c")).refused == 0
            counters.leave(places, "b")
            assert time.monotonic() - began < 1.0
        assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["Redis cannot be reached"]
        server.start()
        other = Counters(nodes.node(seconds=2.0), lease=0.6)
        while counters.shared is not None and counters.shared.away:
            await counters.enter((), (Place("q", 1),), "d")
            counters.leave((Place("q", 1),), "d")
            await asyncio.sleep(0.05)
        # Rates begin anew there; who was under way all the time is there again.
        assert [(await other.enter(rate)).refused for _ in range(4)] == [None, None, None, 0]
        one = (Place("p", 1),)
        while (await other.enter((), one, "e")).refused is None:
            other.leave(one, "e")
            await asyncio.sleep(0.05)
        counters.leave(places, "a")
        for each in (counters, other):
            await each.close()


async def test_a_redis_that_says_nothing_is_waited_for_once_a_second() -> None:
    """A black hole: connections are taken, nothing is answered."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    hole = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = hole.sockets[0].getsockname()[1]
    async with nodes_at(f"redis://127.0.0.1:{port}/0") as nodes:
        shared = nodes.node(seconds=0.05)
        began = time.monotonic()
        assert await asyncio.gather(*(shared.ask("PING") for _ in range(50))) == [AWAY] * 50
        for _ in range(100):
            assert await shared.ask("PING") is AWAY
        assert time.monotonic() - began < 0.5
    hole.close()
    await hole.wait_closed()


async def test_a_redis_that_is_slow_is_found_again_by_the_same_trip(nodes: Nodes) -> None:
    shared, client = nodes.node(seconds=0.05), nodes.client()
    await shared.ask("PING")
    await client.client_pause(600)
    assert await shared.ask("PING") is AWAY
    assert shared.away
    while shared.away:  # noqa: ASYNC110 - nobody asks anything
        await asyncio.sleep(0.01)
    assert await shared.ask("ECHO", "here") == b"here"


async def test_one_trip_carries_what_is_asked_at_once(nodes: Nodes) -> None:
    shared, client = nodes.node(), nodes.client()
    await shared.ask("PING")
    before = (await client.info("stats"))["total_reads_processed"]
    await asyncio.gather(*(shared.ask("SET", shared.name(str(number)), "x", "PX", "1000") for number in range(100)))
    assert (await client.info("stats"))["total_reads_processed"] - before < 20


async def test_a_command_that_redis_refuses_is_away_by_itself(nodes: Nodes) -> None:
    shared = nodes.node()
    shared.tell("SET", shared.name("text"), "x", "PX", "1000")
    found = await asyncio.gather(shared.ask("INCR", shared.name("text")), shared.ask("ECHO", "here"))
    assert found == [AWAY, b"here"]
    assert not shared.away


async def test_a_script_that_redis_forgot_is_told_again(nodes: Nodes) -> None:
    shared = nodes.node()
    script = Script(f"return ARGV[1] .. '{nodes.prefix}'")
    for _ in range(2):
        assert await asyncio.gather(*(shared.run(script, [], n) for n in "ab")) == [
            f"{n}{nodes.prefix}".encode() for n in "ab"
        ]
        await shared.ask("SCRIPT", "FLUSH")
