"""Connections that serve again: whose answer is whose, who waits how long, and what a call leaves behind."""

import asyncio
import gc
import resource
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall
from loomgate.providers.http1 import Connection
from loomgate.providers.transport import Limits, Reply, Timeouts, Transport
from tests.support.peer import Peer, Server, answer, saying
from tests.support.waiting import settle, until

pytestmark = pytest.mark.anyio

FOREVER = Timeouts(connect=1e6, first_byte=1e6, idle=1e6, total=1e6)


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport()
    yield made
    await made.close()


async def read(transport: Transport, call: HttpCall, timeouts: Timeouts = FOREVER) -> bytes:
    async with await transport.send(call, timeouts) as reply:
        return await reply.read(100_000_000)


async def failure(transport: Transport, call: HttpCall, timeouts: Timeouts = FOREVER) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await read(transport, call, timeouts)
    return caught.value


async def hang(peer: Peer) -> None:
    await peer.gone()


# --- whose answer is whose ---


async def echo(peer: Peer) -> None:
    """Answer with the request's own id, in one of many ways, and end the connection in one of many ways."""
    while (request := await peer.request()) is not None:
        number = int(request.body.partition(b" ")[0])
        body = request.body
        way = number % 10
        if way == 0:
            await peer.say(b"HTTP/1.1 200 OK\r\n\r\n" + body)
            return
        if way == 1:
            await peer.say(answer(body, "200 OK", "Connection: close"))
            return
        if way == 2:
            await peer.say(answer(body))
            return  # closes while the client believes that it may use it
        if way == 3:
            await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(body), 1000):
                part = body[at : at + 1000]
                await peer.say(b"%x\r\n" % len(part) + part + b"\r\n")
                await asyncio.sleep(0)
            await peer.say(b"0\r\n\r\n")
        else:
            await peer.say(answer(body))


@pytest.mark.parametrize("connections", [0, 1, 7])
async def test_every_answer_belongs_to_its_request_and_no_call_hangs(connections: int) -> None:
    transport = Transport(Limits(connections=connections))
    calls, at_once = 1500, 40
    numbers = iter(range(calls))
    under_way = busy = most = 0
    outcomes: Counter[str] = Counter()
    async with Server(echo) as server:

        async def caller() -> None:
            nonlocal under_way, busy, most
            for number in numbers:
                body = b"%d " % number + b"x" * (number * 37 % 5000)
                under_way += 1
                most = max(most, server.open)
                began = clock.monotonic()
                try:
                    if number % 11 == 7:  # leaves in the middle, at some moment or other
                        task = asyncio.create_task(read(transport, HttpCall(server.url, {}, body)))
                        for _ in range(number % 6):
                            await asyncio.sleep(0)
                        task.cancel()
                        await asyncio.wait([task])
                        outcomes["left"] += 1
                    elif number % 11 == 8:  # leaves with half an answer read
                        async with await transport.send(HttpCall(server.url, {}, body), FOREVER) as reply:
                            await reply.piece()
                        outcomes["half"] += 1
                    else:
                        assert await read(transport, HttpCall(server.url, {}, body)) == body
                        outcomes["read"] += 1
                finally:
                    busy += clock.monotonic() - began
                    under_way -= 1

        began = clock.monotonic()
        async with asyncio.timeout(60):
            await asyncio.gather(*(caller() for _ in range(at_once)))
        took = clock.monotonic() - began
        assert sum(outcomes.values()) == calls
        assert under_way == 0
        # Little's law: rate times latency is the number of calls under way, unless some of them hang.
        assert busy / took == pytest.approx(at_once, rel=0.25)
        if connections:
            # The server may not yet have seen the end of those that are replaced.
            assert most <= 2 * connections + at_once // 4
        await transport.close()
        await until(lambda: server.open == 0)


def _taken() -> int:
    """Bytes that were allocated by what is tested here, and not by servers that other tests share."""
    here = (tracemalloc.Filter(True, "*/loomgate/providers/*"), tracemalloc.Filter(True, __file__))
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(here).traces)


async def test_ten_thousand_calls_one_connection_flat_memory(transport: Transport) -> None:
    async with Server(saying(answer(b'{"a": 1}'))) as server:
        call = HttpCall(server.url, {"X-A": "b"}, b"{}")

        async def many(count: int) -> None:
            for _ in range(count):
                async with await transport.send(call, FOREVER) as reply:
                    assert reply.whole == b'{"a": 1}'
                server.peers[0].requests.clear()

        await many(500)
        gc.collect()
        gc.disable()  # nothing is left to it
        tracemalloc.start(1)
        try:
            await many(200)
            before = _taken()
            await many(1000)
            assert _taken() - before < 30_000  # 30 bytes a call would be a leak
            tracemalloc.stop()
            highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            await many(8800)
            # KiB; servers that other tests share may take something meanwhile, too.
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - highest < 4000
        finally:
            tracemalloc.stop()
            gc.enable()
        assert len(server.peers) == 1


def _connections() -> int:
    return sum(isinstance(one, Connection) for one in gc.get_objects())


async def test_a_connection_a_call_leaves_no_cycles_behind(transport: Transport) -> None:
    async with Server(saying(answer(b"x", "200 OK", "Connection: close"))) as server:
        call = HttpCall(server.url, {})
        await read(transport, call)
        await until(lambda: server.open == 0)
        gc.collect()
        others = _connections()  # of servers that other tests share
        gc.disable()
        try:
            for _ in range(50):
                await read(transport, call)
            await until(lambda: server.open == 0)
            await settle()
            assert _connections() <= others
        finally:
            gc.enable()


# --- kept, and gone meanwhile ---


async def test_a_kept_connection_that_was_closed_is_replaced_once(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"%d" % peer.number))
        await peer.request()  # and closes without an answer

    async with Server(play) as server:
        for number in range(1, 5):
            assert await read(transport, HttpCall(server.url, {})) == b"%d" % number
        assert [len(peer.requests) for peer in server.peers] == [2, 2, 2, 1]


async def test_no_second_try_once_anything_has_come_or_on_a_fresh_connection(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.say(answer())
            await peer.request()
            await peer.say(b"HTTP/1.1 100 Continue\r\n\r\n")

    async with Server(play) as server:
        await read(transport, HttpCall(server.url, {}))
        assert (await failure(transport, HttpCall(server.url, {}))).kind == "connect"
        assert len(server.peers) == 1
        assert (await failure(transport, HttpCall(server.url, {}))).kind == "connect"
        assert len(server.peers) == 2


async def test_one_that_closes_or_speaks_while_unused_is_not_used_again(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"%d" % peer.number))
        await asyncio.wait_for(go.wait(), 5)
        if peer.number == 2:
            await peer.say(answer(b"for nobody"))
            await peer.gone()

    async with Server(play) as server:
        for number in (1, 2, 3):
            go = asyncio.Event()
            assert await read(transport, HttpCall(server.url, {})) == b"%d" % number
            go.set()
            await until(lambda: server.open == 0)
            await settle()
        assert [len(peer.requests) for peer in server.peers] == [1, 1, 1]


async def test_unused_connections_are_closed_in_time(transport: Transport) -> None:
    async with Server(saying(answer())) as server:
        await asyncio.gather(*(read(transport, HttpCall(server.url, {})) for _ in range(3)))
        assert server.open == 3
        clock.advance(29)
        await settle()
        assert server.open == 3
        await read(transport, HttpCall(server.url, {}))
        clock.advance(2)
        await until(lambda: server.open == 1)  # the one used in between
        clock.advance(31)
        await until(lambda: server.open == 0)
        await read(transport, HttpCall(server.url, {}))
        assert len(server.peers) == 4


async def test_closing_breaks_calls_under_way_and_waiting_ones() -> None:
    transport = Transport(Limits(connections=1))
    async with Server(hang) as server:
        calls = [asyncio.create_task(failure(transport, HttpCall(server.url, {}))) for _ in range(3)]
        await until(lambda: server.open)
        await settle()
        await transport.close()
        assert [error.kind for error in await asyncio.gather(*calls)] == ["connect"] * 3
        await until(lambda: server.open == 0)
    async with Server(saying(answer(b"again"))) as server:
        assert await read(transport, HttpCall(server.url, {})) == b"again"
        await transport.close()


# --- the limit ---


async def test_waiting_callers_are_served_in_order_and_may_leave() -> None:
    transport = Transport(Limits(connections=2))
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        while await peer.request() is not None:
            await asyncio.wait_for(go.wait(), 5)
            await peer.say(answer())

    async with Server(play) as server:
        served: list[int] = []

        async def one(number: int) -> None:
            await read(transport, HttpCall(server.url, {}, b"%d" % number))
            served.append(number)

        tasks: list[asyncio.Task[None]] = []
        for number in range(8):
            tasks.append(asyncio.create_task(one(number)))
            await settle()
        assert [int(request.body) for request in server.requests] == [0, 1]
        for left in (2, 5, 7):
            tasks[left].cancel()
        await settle()
        go.set()
        await asyncio.wait(tasks)
        assert sorted(served) == [0, 1, 3, 4, 6]
        assert served[2:] == sorted(served[2:])  # in the order in which they came
        assert len(server.peers) == 2
        await transport.close()


async def test_a_slot_that_comes_in_the_moment_of_leaving_is_passed_on() -> None:
    transport = Transport(Limits(connections=1))
    async with Server(saying(answer(b"x"))) as server:
        call = HttpCall(server.url, {})
        for turns in range(12):
            first = asyncio.create_task(read(transport, call))
            second = asyncio.create_task(read(transport, call))
            third = asyncio.create_task(read(transport, call))
            while not first.done():  # noqa: ASYNC110 - turn by turn: the moment is what is tested
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            second.cancel()
            assert await asyncio.wait_for(third, 5) == b"x"
            await asyncio.wait([second])
        assert await asyncio.wait_for(read(transport, call), 5) == b"x"
        await transport.close()


async def test_an_unused_connection_elsewhere_makes_room() -> None:
    transport = Transport(Limits(connections=2))
    async with Server(saying(answer())) as one, Server(saying(answer())) as two, Server(saying(answer())) as three:
        for server in (one, two, one, three):
            await read(transport, HttpCall(server.url, {}))
        await until(lambda: (one.open, two.open, three.open) == (1, 0, 1))
        await transport.close()


# --- leaving ---


@pytest.mark.parametrize("phase", ["slot", "connecting", "large body", "headers", "body", "between pieces"])
async def test_a_call_can_be_left_in_every_phase(phase: str) -> None:
    transport = Transport(Limits(connections=1))
    left = False

    async def play(peer: Peer) -> None:
        if left:
            await saying(answer(b"next"))(peer)
            return
        if phase == "large body":
            await peer.head()
            while not left:  # noqa: ASYNC110 - reads nothing, so that the client cannot write
                await asyncio.sleep(0.001)
        elif await peer.request() is not None and phase in ("body", "between pieces"):
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        await peer.gone()

    async with Server(play) as server:
        body = b"x" * (20_000_000 if phase == "large body" else 10)
        replies: list[Reply] = []

        async def call() -> None:
            async with await transport.send(HttpCall(server.url, {}, body), FOREVER) as reply:
                replies.append(reply)
                await reply.piece()
                if phase == "between pieces":
                    await asyncio.Event().wait()
                await reply.piece()

        task = asyncio.create_task(call())
        if phase == "connecting":
            await asyncio.sleep(0)
        else:
            await until(lambda: replies if "b" in phase[:2] else server.requests)
            await settle()
        if phase == "slot":
            waiting = asyncio.create_task(call())
            await settle()
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await settle()
        left = True
        await until(lambda: server.open == 0)
        assert phase != "connecting" or not server.requests
        assert await asyncio.wait_for(read(transport, HttpCall(server.url, {})), 5) == b"next"
        await transport.close()


# --- reading slowly ---


@pytest.mark.parametrize("framing", ["Content-Length: 100000000", "Transfer-Encoding: chunked"])
async def test_what_nobody_reads_is_not_fetched(transport: Transport, framing: str) -> None:
    total = 100_000_000
    part = b"x" * 50_000
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode())
        while sent < total:
            await peer.say(part if "Length" in framing else b"%x\r\n%s\r\n" % (len(part), part))
            sent += len(part)
        if "Length" not in framing:
            await peer.say(b"0\r\n\r\n")
        await peer.gone()

    async with Server(play) as server, await transport.send(HttpCall(server.url, {}), FOREVER) as reply:
        sizes = [len(await reply.piece())]
        before = -1
        while before != sent:  # until the sockets are full
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 20_000_000  # what two sockets on one machine hold
        while size := len(await reply.piece()):
            sizes.append(size)
        assert sum(sizes) == total
        assert max(sizes) < 64 * 1024 + 2 * 256 * 1024


# --- deadlines, on the clock that tests move ---


async def fails_after(transport: Transport, call: HttpCall, seconds: float, timeouts: Timeouts) -> ProviderError:
    task = asyncio.create_task(failure(transport, call, timeouts))
    await asyncio.sleep(0.03)
    await settle()
    clock.advance(seconds - 1)
    await settle()
    assert not task.done()
    clock.advance(1.5)
    return await asyncio.wait_for(task, 5)


async def test_deadlines_of_every_phase() -> None:
    transport = Transport(Limits(connections=2))
    times = Timeouts(connect=100, first_byte=200, idle=50, total=1000)

    async def play(peer: Peer) -> None:
        request = await peer.request()
        assert request is not None
        if request.body == b"idle":
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        elif request.body == b"dribble":
            await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n5;")
        await peer.gone()

    async with Server(play) as server:
        error = await fails_after(transport, HttpCall(server.url, {}), 200, times)
        assert (error.kind, error.message) == ("timeout", "The endpoint did not begin to answer for 200 seconds.")
        for body in (b"idle", b"dribble"):
            error = await fails_after(transport, HttpCall(server.url, {}, body), 50, times)
            assert (error.kind, error.message) == ("timeout", "The endpoint fell silent for 50 seconds.")
        short = Timeouts(connect=100, first_byte=200, idle=50, total=40)
        for body in (b"", b"idle"):
            error = await fails_after(transport, HttpCall(server.url, {}, body), 40, short)
            assert (error.kind, error.message) == ("timeout", "The endpoint did not finish within 40 seconds.")
        await until(lambda: server.open == 0)
        holding = [asyncio.create_task(failure(transport, HttpCall(server.url, {}))) for _ in range(2)]
        await until(lambda: server.open == 2)
        error = await fails_after(transport, HttpCall(server.url, {}), 100, times)
        assert (error.kind, error.message) == ("connect", "No connection to 127.0.0.1 within 100 seconds.")
        await transport.close()
        await asyncio.gather(*holding)


async def test_no_tls_in_time(transport: Transport) -> None:
    async with Server(hang) as server:
        call = HttpCall(server.url.replace("http:", "https:"), {})
        error = await fails_after(transport, call, 10, Timeouts(connect=10))
        assert (error.kind, error.message) == ("connect", "No connection to 127.0.0.1 within 10 seconds.")
        await until(lambda: server.open == 0)


async def test_a_stream_that_never_pauses_ends_in_time_as_well(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await peer.say(b"x" * 100_000)

    async with Server(play) as server:

        async def call() -> None:
            async with await transport.send(HttpCall(server.url, {}), Timeouts(total=60)) as reply:
                for turn in range(10_000):
                    assert await reply.piece()
                    if turn == 100:
                        clock.advance(61)

        with pytest.raises(ProviderError, match="did not finish within 60 seconds"):
            await call()
        await until(lambda: server.open == 0)


async def test_hurry_counts_from_now(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        await peer.gone()

    async with Server(play) as server, await transport.send(HttpCall(server.url, {}), FOREVER) as reply:
        assert await reply.piece() == b"hello"
        clock.advance(1000)
        reply.hurry(Timeouts(idle=5, total=30))
        piece = asyncio.create_task(reply.piece())
        await settle()
        clock.advance(4)
        await settle()
        assert not piece.done()
        clock.advance(2)
        with pytest.raises(ProviderError, match="fell silent for 5 seconds"):
            await asyncio.wait_for(piece, 5)


async def test_one_task_looks_after_all_deadlines(transport: Transport) -> None:
    async with Server(hang) as server:
        before = len(asyncio.all_tasks())
        calls = [asyncio.create_task(failure(transport, HttpCall(server.url, {}))) for _ in range(20)]
        await until(lambda: len(server.requests) == 0 and server.open == 20)
        await settle()
        assert len(asyncio.all_tasks()) - before == 20 + 20 + 1  # the calls, the server's, and one
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


# --- requests that no task waits for ---


async def test_a_request_that_was_started_is_settled_left_or_gone_on_with(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if request.body == b"hang":
                await peer.gone()
                return
            await peer.say(answer(request.body.upper()))

    async with Server(play) as server:
        call = HttpCall(server.url + "/x", {"a": "b"}, b"first")
        line = transport.line(call)
        assert line is not None
        assert transport.start(line, b"x", lambda: None) is None  # there is no connection yet
        assert await read(transport, call) == b"FIRST"

        told = asyncio.Event()
        started = transport.start(line, b"second", told.set)
        assert started is not None
        await told.wait()
        assert (started.connection.over, started.connection.status) == (True, 200)
        assert started.settle() == b"SECOND"

        started = transport.start(line, b"third", lambda: None)
        assert started is not None
        reply = await transport.send(HttpCall(call.url, call.headers, b"third"), FOREVER, started)
        started.leave()  # it is somebody else's
        assert await reply.read(100) == b"THIRD"
        assert [request.body for request in server.requests] == [b"first", b"second", b"third"]
        assert server.requests[1].headers == server.requests[0].headers | {"content-length": "6"}

        assert transport.start(line, b"no", lambda: None, lambda: False) is None
        assert len(server.peers) == 1

        started = transport.start(line, b"hang", lambda: None)
        assert started is not None
        started.leave()
        await until(lambda: server.open == 0)
        assert await read(transport, call) == b"FIRST"


async def test_a_request_that_was_started_has_the_deadlines_that_it_would_have_had(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"ok"))
        await peer.gone()

    async with Server(play) as server:
        call = HttpCall(server.url + "/x", {}, b"body")
        line = transport.line(call)
        assert line is not None
        await read(transport, call)
        started = transport.start(line, b"body", lambda: None)
        assert started is not None
        clock.advance(9.9)
        began = clock.monotonic()
        with pytest.raises(ProviderError, match="did not begin to answer for 10 seconds"):
            await transport.send(call, Timeouts(first_byte=10.0), started)
        assert clock.monotonic() - began < 5


def test_what_one_line_cannot_say_has_none() -> None:
    transport = Transport()
    assert transport.line(HttpCall("http://a/x", {}, b"")) is None
    assert transport.line(HttpCall("http://a/x", {"connection": "close"}, b"x")) is None
    assert transport.line(HttpCall("http://a/x", {"accept-encoding": "gzip"}, b"x")) is None
    with pytest.raises(ProviderError, match="line break"):
        transport.line(HttpCall("http://a/x", {"a": "b\nc: d"}, b"x"))
