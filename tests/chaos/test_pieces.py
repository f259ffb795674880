"""The pieces of the cluster test: what a relay does to a connection, and that a seed gives the same faults again."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from tests.chaos.relay import Relay
from tests.chaos.schedule import faults


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


_BROKEN = (ConnectionError, asyncio.IncompleteReadError)
NODES = ["api-1", "worker-1", "worker-2"]


@asynccontextmanager
async def relayed() -> AsyncGenerator[Relay, None]:
    """A relay before a server that answers with what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(100):
                writer.write(piece)
        except ConnectionError:
            pass  # it was cut
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    relay = Relay(server.sockets[0].getsockname()[1])
    await relay.start()
    try:
        yield relay
    finally:
        await relay.close()
        server.close()
        await asyncio.sleep(0.05)  # what was aborted is told so


async def _connected(relay: Relay) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(b"one")
    return reader, writer


@pytest.mark.anyio
async def test_what_is_held_back_comes_late_and_whole() -> None:
    async with relayed() as relay:
        reader, writer = await _connected(relay)
        assert await reader.readexactly(3) == b"one"
        relay.hold()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(3), 0.1)
        late_reader, late = await _connected(relay)
        relay.restore()
        assert await reader.readexactly(3) == b"two"
        assert await late_reader.readexactly(3) == b"one"
        for each in (writer, late):
            each.transport.abort()


@pytest.mark.anyio
async def test_what_is_lost_breaks_the_connection() -> None:
    async with relayed() as relay:
        reader, writer = await _connected(relay)
        await reader.readexactly(3)
        relay.hold()
        writer.write(b"two")
        relay.restore(reset=True)
        with pytest.raises(_BROKEN):
            await reader.readexactly(3)
        writer.transport.abort()


@pytest.mark.anyio
async def test_cut_connections_may_come_back_and_refused_ones_may_not() -> None:
    async with relayed() as relay:
        for fault in (relay.cut, relay.refuse):
            reader, writer = await _connected(relay)
            await reader.readexactly(3)
            fault()
            with pytest.raises(_BROKEN):
                await reader.readexactly(3)
            writer.transport.abort()
        reader, writer = await _connected(relay)
        with pytest.raises(_BROKEN):
            await reader.readexactly(3)
        writer.transport.abort()
        relay.restore()
        reader, writer = await _connected(relay)
        assert await reader.readexactly(3) == b"one"
        writer.transport.abort()


def test_a_seed_gives_the_same_faults_again() -> None:
    first, again, other = (list(itertools.islice(faults(seed, NODES, 3.0), 200)) for seed in ("1", "1", "2"))
    assert first == again != other
    assert [fault.at for fault in first] == sorted(fault.at for fault in first)
    assert len({fault.kind for fault in first}) == 9, "every kind comes"
    assert all(fault.seconds > 3.0 for fault in first if fault.kind == "pause"), "longer than a lease"


def test_a_server_is_left_in_peace_for_a_while() -> None:
    hits = [fault for fault in itertools.islice(faults("3", NODES, 3.0), 500) if fault.victim == "postgres"]
    assert all(after.at > before.at + before.seconds + 5 for before, after in itertools.pairwise(hits))
