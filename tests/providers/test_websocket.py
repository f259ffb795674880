"""WebSockets through the door: the handshake, messages both ways, closes, deadlines, and what is left behind."""

import asyncio
import base64
import hashlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Limits, Timeouts, Transport
from tests.support.authority import Authority
from tests.support.peer import Peer, Server, answer
from tests.support.waiting import settle, until

pytestmark = pytest.mark.anyio

FOREVER = Timeouts(connect=1e6, first_byte=1e6, idle=1e6, total=1e6)


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport(Limits(connections=1))
    yield made
    await made.close()


async def shake(peer: Peer, *more: str) -> None:
    """The endpoint's side of the opening handshake (RFC 6455 section 4.2.2)."""
    request = await peer.head()
    assert request is not None
    assert request.headers["upgrade"] == "websocket"
    key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest()).decode()
    lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", *more)
    await peer.say("\r\n".join((*lines, f"Sec-WebSocket-Accept: {accept}", "", "")).encode())


async def heard(peer: Peer) -> tuple[int, bytes]:
    """The next frame's first byte and its data; a client masks what it sends."""
    first, second = await peer.reader.readexactly(2)
    assert second & 0x80
    size = second & 0x7F
    if size >= 126:
        size = int.from_bytes(await peer.reader.readexactly(2 if size == 126 else 8))
    mask = await peer.reader.readexactly(4)
    data = await peer.reader.readexactly(size)
    return first, bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))


def frame(first: int, data: bytes = b"") -> bytes:
    assert len(data) < 65536
    size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack("!H", len(data))
    return bytes([first]) + size + data


def address(server: Server) -> str:
    return server.url.replace("http", "ws", 1)


async def test_messages_both_ways_frame_by_frame(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await shake(peer, "Sec-WebSocket-Protocol: realtime")
        assert await heard(peer) == (0x81, "grüß dich".encode())
        assert await heard(peer) == (0x82, b"\x00\xff" * 40_000)
        await peer.say(frame(0x89, b"are you there?"))
        assert await heard(peer) == (0x8A, b"are you there?")
        await peer.say(frame(0x81, "schön".encode()) + frame(0x02, b"one ") + frame(0x89) + frame(0x80, b"two"))
        await peer.say(frame(0x88, struct.pack("!H", 4001) + b"enough"))
        assert await heard(peer) == (0x8A, b"")
        assert await heard(peer) == (0x88, struct.pack("!H", 4001) + b"enough")

    async with Server(play) as server:
        url, headers = f"{address(server)}/v1/realtime?model=m", {"Authorization": "Bearer k", "X-A": "b"}
        headers |= {"Sec-WebSocket-Protocol": "realtime, key.secret"}
        async with await transport.websocket(url, headers, FOREVER) as ws:
            assert ws.subprotocol == "realtime"
            await ws.send("grüß dich")
            await ws.send(b"\x00\xff" * 40_000)
            assert await ws.recv() == "schön"
            assert await ws.recv() == b"one two"
            assert await ws.recv() is None
            assert (ws.close_code, ws.close_reason) == (4001, "enough")
            with pytest.raises(ProviderError, match="is closed"):
                await ws.send("more")
        request = server.requests[0]
        assert request.line == "GET /v1/realtime?model=m HTTP/1.1"
        assert request.headers["authorization"] == "Bearer k"
        assert request.headers["sec-websocket-protocol"] == "realtime, key.secret"
        assert request.headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(("code", "sent"), [(1000, 1000), (4000, 4000), (1006, 1000), (99, 1000)])
async def test_we_close(transport: Transport, code: int, sent: int) -> None:
    async def play(peer: Peer) -> None:
        await shake(peer)
        first, data = await heard(peer)
        assert (first, data) == (0x88, struct.pack("!H", sent) + b"x" * 123)
        await peer.say(frame(0x81, b"too late") + frame(0x88, data[:2]))

    async with Server(play) as server:
        for _ in range(2):  # the only connection is free again
            ws = await transport.websocket(address(server), {}, FOREVER)
            await ws.close(code, "x" * 200)
            assert ws.close_code == sent
            await until(lambda: server.open == 0)


async def test_the_other_side_never_answers_a_close(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await shake(peer)
        await peer.gone()

    async with Server(play) as server:
        ws = await transport.websocket(address(server), {}, FOREVER)
        closing = asyncio.create_task(ws.close())
        await settle()
        assert not closing.done()
        clock.advance(6)
        await asyncio.wait_for(closing, 5)
        await until(lambda: server.open == 0)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", 1006),
        (frame(0x81, b"cut")[:3], 1006),
        (frame(0x88), 1005),
    ],
)
async def test_a_connection_that_ends(transport: Transport, sent: bytes, code: int) -> None:
    async def play(peer: Peer) -> None:
        await shake(peer)
        await peer.say(frame(0x81, b"hello") + sent)

    async with Server(play) as server, await transport.websocket(address(server), {}, FOREVER) as ws:
        assert await ws.recv() == "hello"
        assert await ws.recv() is None
        assert (ws.close_code, ws.close_reason) == (code, "")


@pytest.mark.parametrize(("sent", "code"), [(frame(0x81, b"\xff"), 1007), (frame(0xC1, b"x"), 1002)])
async def test_what_is_no_message_ends_it(transport: Transport, sent: bytes, code: int) -> None:
    told: list[bytes] = []

    async def play(peer: Peer) -> None:
        await shake(peer)
        await peer.say(sent)
        told.append((await heard(peer))[1][:2])

    async with Server(play) as server, await transport.websocket(address(server), {}, FOREVER) as ws:
        assert await asyncio.wait_for(ws.recv(), 5) is None
        await until(lambda: told)
        assert told == [struct.pack("!H", code)]


async def test_a_refused_handshake_gives_status_and_body(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(answer(b'{"error": "no"}', "429 Too Many Requests", "Retry-After: 7"))

    async with Server(play) as server:
        for _ in range(2):
            with pytest.raises(ProviderError) as caught:
                await transport.websocket(address(server), {}, FOREVER)
            assert caught.value.status == 429
            assert caught.value.kind == "rate_limit"
            assert caught.value.message == '{"error": "no"}'
            assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"SSH-2.0-x\r\n\r\n", "malformed"),
        (
            b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            "malformed",
        ),
        (b"", "connect"),
    ],
)
async def test_an_answer_that_is_no_handshake(transport: Transport, sent: bytes, kind: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        if sent:
            await peer.say(sent)
            await peer.gone()

    async with Server(play) as server:
        with pytest.raises(ProviderError) as caught:
            await asyncio.wait_for(transport.websocket(address(server), {}, FOREVER), 5)
        assert caught.value.kind == kind
        await until(lambda: server.open == 0)


@pytest.mark.parametrize(
    "headers", [{"X-A": "b\r\nX-B: c"}, {"Upgrade": "h2c"}, {"Connection": "close"}, {"Sec-WebSocket-Key": "x"}]
)
async def test_headers_that_cannot_be_set(transport: Transport, headers: dict[str, str]) -> None:
    async def play(peer: Peer) -> None:
        assert await peer.head() is None

    async with Server(play) as server:
        with pytest.raises(ProviderError) as caught:
            await transport.websocket(address(server), headers, FOREVER)
        assert caught.value.kind == "invalid"
        with pytest.raises(ProviderError, match="not a ws or wss URL"):
            await transport.websocket(server.url, {}, FOREVER)
        with pytest.raises(ProviderError, match="public internet"):
            await transport.websocket(address(server), {}, FOREVER, public_only=True)


async def test_deadlines(transport: Transport) -> None:
    times = Timeouts(connect=100, first_byte=50, idle=20, total=70)

    async def play(peer: Peer) -> None:
        if len(server.peers) > 1:
            await shake(peer)
            await peer.say(frame(0x89))
            while (await heard(peer))[0]:
                if len(peer.requests) < 2:
                    peer.requests.append(peer.requests[0])
        await peer.gone()

    async with Server(play) as server:
        opening = asyncio.create_task(transport.websocket(address(server), {}, times))
        await until(lambda: server.open)
        await settle()
        clock.advance(51)
        with pytest.raises(ProviderError, match="did not begin to answer for 50 seconds"):
            await opening
        ws = await transport.websocket(address(server), {}, times)
        receiving = asyncio.create_task(ws.recv())
        await until(lambda: len(server.peers[1].requests) == 2)
        clock.advance(21)
        with pytest.raises(ProviderError, match="fell silent for 20 seconds"):
            await receiving
        clock.advance(50)
        with pytest.raises(ProviderError, match="did not finish within 70 seconds"):
            await ws.recv()
        ws.end()
        await until(lambda: server.open == 0)


async def test_it_counts_as_a_connection_and_can_be_left(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        if peer.number == 2:
            await peer.request()
            await peer.say(answer(b"http"))
        else:
            await shake(peer)
        await peer.gone()

    async with Server(play) as server:
        ws = await transport.websocket(address(server), {}, FOREVER)
        waiting = asyncio.create_task(transport.send(HttpCall(server.url, {}), FOREVER))
        receiving = asyncio.create_task(ws.recv())
        await settle()
        assert not waiting.done()
        receiving.cancel()
        await asyncio.wait([receiving])
        ws.end()
        ws.end()
        reply = await asyncio.wait_for(waiting, 5)
        assert reply.whole == b"http"
        assert await ws.recv() is None
        assert ws.close_code == 1006
        another = await transport.websocket(address(server), {}, FOREVER)
        receiving = asyncio.create_task(another.recv())
        await settle()
        await transport.close()
        assert await asyncio.wait_for(receiving, 5) is None
        await until(lambda: server.open == 0)


async def test_what_nobody_reads_is_not_fetched_and_a_blocked_sender_waits(transport: Transport) -> None:
    got = sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent, got
        await shake(peer)
        for _ in range(2000):
            await peer.say(frame(0x82, b"x" * 50_000))
            sent += 1
        while (one := await heard(peer))[0] == 0x82:
            got += len(one[1])

    async with Server(play) as server, await transport.websocket(address(server), {}, FOREVER) as ws:
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 400
        sending = [asyncio.create_task(ws.send(b"y" * 100_000)) for _ in range(100)]
        await settle()
        assert not all(task.done() for task in sending)
        for _ in range(2000):
            assert len(await ws.recv() or b"") == 50_000
        await asyncio.gather(*sending)
        await until(lambda: got == 10_000_000)


async def test_a_genuine_server_over_tls_and_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    transport = Transport(Limits(ca_file=str(authority.ca_file)))

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)
        await connection.close(4002, "bye")

    async def tunnel(peer: Peer) -> None:
        request = await peer.head()
        assert request is not None
        there, back = await asyncio.open_connection("127.0.0.1", int(request.line.split()[1].rpartition(":")[2]))
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\n")

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pass_on(peer.reader, back), pass_on(there, peer.writer))

    async with Server(tunnel) as proxy:
        for scheme, context in (("ws", None), ("wss", authority.context("far.example", "127.0.0.1"))):
            async with serve(echo, "127.0.0.1", 0, ssl=context) as server:
                port = next(iter(server.sockets)).getsockname()[1]
                for host in ("127.0.0.1", "far.example"):
                    if host == "far.example":
                        monkeypatch.setenv("http_proxy", proxy.url)
                        monkeypatch.setenv("https_proxy", proxy.url)
                        monkeypatch.setenv("no_proxy", "127.0.0.1")
                    async with await transport.websocket(f"{scheme}://{host}:{port}/", {}, FOREVER) as ws:
                        for message in ("text", b"bytes", "long " * 200_000, ""):
                            await ws.send(message)
                            assert await asyncio.wait_for(ws.recv(), 5) == message
        assert len(proxy.requests) == 2
        await transport.close()
