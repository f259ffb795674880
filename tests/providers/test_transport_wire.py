"""One exchange on the wire: framing in all its forms, what is not HTTP, what a request looks like, compression."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall
from loomgate.providers.http1 import LONGEST_HEAD, Connection
from loomgate.providers.pool import Pool
from loomgate.providers.transport import Timeouts, Transport
from tests.support.peer import Peer, Server, answer, saying
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

LIMIT = 10_000_000


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport()
    yield made
    await made.close()


async def read(transport: Transport, call: HttpCall) -> tuple[int, bytes]:
    async with await transport.send(call, Timeouts()) as reply:
        return reply.status, await reply.read(LIMIT)


async def failure(transport: Transport, call: HttpCall) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await read(transport, call)
    return caught.value


# --- answers ---

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n"
    b"5;name=value\r\nhello\r\n1\r\n \r\nA\r\n0123456789\r\n0\r\nX-Trailer: late\r\n\r\n"
)


@pytest.mark.parametrize(
    ("method", "sent", "status", "body"),
    [
        ("POST", answer(b"hello"), 200, b"hello"),
        ("POST", CHUNKED, 200, b"hello 0123456789"),
        ("POST", b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi"),
        ("POST", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nContent-Length: 9\r\n\r\n" + answer(b"x"), 200, b"x"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, b""),
        ("GET", b"HTTP/1.1 204 No\r\n\r\n", 204, b""),
        ("GET", b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", 304, b""),
        ("GET", answer(b"moved", "302 Found", "Location: /elsewhere", "Set-Cookie: a=b"), 302, b"moved"),
        ("DELETE", answer(b"", "200 OK", "Upgrade: h2c", "Connection: Upgrade"), 200, b""),
    ],
)
async def test_bodies_of_every_kind_and_the_next_call_on_the_same_connection(
    transport: Transport, method: str, sent: bytes, status: int, body: bytes
) -> None:
    async with Server(saying(sent)) as server:
        for _ in range(3):
            assert await read(transport, HttpCall(f"{server.url}/x", {}, method=method)) == (status, body)
        assert len(server.peers) == 1
        assert [request.line for request in server.requests] == [f"{method} /x HTTP/1.1"] * 3
        assert not [request for request in server.requests if "cookie" in request.headers]


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        answer(b"hello", "200 OK", "Connection: close"),
        answer(b"hello") + b"more",
        answer(b"hello") + answer(b"an answer to nothing"),
        answer(b"hello", "200 OK", "Connection: close") + b"more",
    ],
)
async def test_a_connection_that_cannot_be_kept_is_closed_by_us_at_once(transport: Transport, sent: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(sent)
        await peer.gone()

    async with Server(play) as server:
        for number in (1, 2):
            assert await read(transport, HttpCall(server.url, {})) == (200, b"hello")
            assert len(server.peers) == number
            await until(lambda: server.open == 0)


async def test_a_body_without_length_ends_with_the_connection(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n\r\nfirst ")
        await peer.say(b"second")

    async with Server(play) as server:
        for number in (1, 2):
            assert await read(transport, HttpCall(server.url, {})) == (200, b"first second")
            assert len(server.peers) == number


async def test_headers_as_they_came_and_the_whole_small_answer(transport: Transport) -> None:
    server = Server(saying(CHUNKED))
    async with server, await transport.send(HttpCall(server.url, {}), Timeouts()) as reply:
        assert reply.raw_headers == [(b"transfer-encoding", b"chunked"), (b"x-a", b"1"), (b"x-a", b"2")]
        assert reply.headers == {"transfer-encoding": "chunked", "x-a": "2"}
        assert reply.whole == b"hello 0123456789"
        assert await reply.piece() == reply.whole
        assert await reply.piece() == b""


async def test_an_answer_in_two_reads_is_not_whole(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await asyncio.wait_for(go.wait(), 5)
        await peer.say(b"later")
        await peer.gone()

    go = asyncio.Event()
    async with Server(play) as server, await transport.send(HttpCall(server.url, {}), Timeouts()) as reply:
        assert reply.whole is None
        assert await reply.piece() == b"first"
        go.set()
        assert await reply.piece() == b"later"
        assert await reply.piece() == b""
        assert await reply.piece() == b""


MANY = b"".join(b"X-%d: %s\r\n" % (number, b"v" * 1000) for number in range(80))


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + MANY + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (LONGEST_HEAD + 300_000),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    ],
    ids=lambda sent: str(sent[:40]),
)
async def test_what_is_no_answer_is_malformed_and_its_connection_closed(transport: Transport, sent: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(sent)
        await peer.gone()

    async with Server(play) as server:
        assert (await failure(transport, HttpCall(server.url, {}))).kind == "malformed"
        await until(lambda: server.open == 0)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
CHUNK_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        (b"", "connect"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "connect"),
        (HEAD, "connect"),
        (HEAD + b"hello", "cut"),
        (CHUNK_HEAD, "connect"),
        (CHUNK_HEAD + b"5\r\nhel", "cut"),
        (CHUNK_HEAD + b"5\r\nhello\r\n", "cut"),
        (CHUNK_HEAD + b"5\r\nhello\r\n0\r\n", "cut"),
        (CHUNK_HEAD + b"5\r\nhello\r\nnonsense\r\n", "cut"),
        (CHUNK_HEAD + b"nonsense\r\n", "connect"),
    ],
)
async def test_a_broken_body_is_cut_or_never_came(transport: Transport, sent: bytes, kind: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        if sent:
            await peer.say(sent)

    async with Server(play) as server:
        assert (await failure(transport, HttpCall(server.url, {}))).kind == kind
        assert len(server.peers) == 1


async def test_trailers_and_chunk_extensions_have_an_end(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        flood = b"x" * 10_000
        await peer.say(CHUNK_HEAD + b"5\r\nhello\r\n" + (b"0\r\nX: " if len(server.peers) == 1 else b"5;"))
        for _ in range(100):
            await peer.say(flood)
            await asyncio.sleep(0)
        await peer.gone()

    async with Server(play) as server:
        for _ in range(2):
            assert (await failure(transport, HttpCall(server.url, {}))).kind == "cut"
            await until(lambda: server.open == 0)


def test_an_answer_before_the_question_is_not_followed_by_another() -> None:
    connection = Connection("key", Pool(0, 30.0))
    connection.connection_made(_Tape())
    connection.data_received(answer(b"early"))
    connection.begin(b"GET / HTTP/1.1\r\n\r\n")
    assert (connection.status, connection.take(), connection.over) == (200, b"early", True)
    assert not connection.reusable


# --- requests ---


async def test_what_a_request_looks_like(transport: Transport) -> None:
    async with Server(saying(answer())) as server:
        host = server.url.removeprefix("http://")
        await read(transport, HttpCall(f"{server.url}/a/b?c=d#e", {"X-Key": "Zürich"}, b"body"))
        await read(transport, HttpCall(f"{server.url}?c=d", {"host": "other", "accept-encoding": "br"}, method="GET"))
        await read(transport, HttpCall(server.url.replace("//", "//u:p%40@") + "/é ü", {"Content-Length": "0"}))
        await read(transport, HttpCall(server.url.replace("//", "//u:p@") + "/", {"Authorization": "Bearer x"}))
        first, second, third, fourth = server.requests
        assert first.line == "POST /a/b?c=d HTTP/1.1"
        assert first.headers == {
            "host": host,
            "x-key": "Zürich",
            "user-agent": "loomgate",
            "accept": "*/*",
            "accept-encoding": "identity",
            "content-length": "4",
        }
        assert first.body == b"body"
        assert second.line == "GET /?c=d HTTP/1.1"
        assert (second.headers["host"], second.headers["accept-encoding"]) == ("other", "br")
        assert second.head.lower().count(b"host:") == second.head.lower().count(b"accept-encoding:") == 1
        assert "content-length" not in second.headers
        assert third.line == "POST /%C3%A9%20%C3%BC HTTP/1.1"
        assert third.headers["authorization"] == "Basic dTpwQA=="
        assert third.head.lower().count(b"content-length: 0") == 1
        assert fourth.headers["authorization"] == "Bearer x"
        assert fourth.head.count(b"uthorization") == 1


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"X-A": "secret\r\nX-B: 1"}, "X-A"),
        ({"X-A": "secret\n"}, "X-A"),
        ({"X-A": "secret\rX"}, "X-A"),
        ({"X-A": "secret\0"}, "X-A"),
        ({"X-A\r\nX-B": "secret"}, "X-A"),
        ({"X A": "secret"}, "X A"),
        ({"X-A: b": "secret"}, "X-A"),
        ({"": "secret"}, "''"),
        ({"X-A": "secret\ud800"}, "header"),
        ({"Transfer-Encoding": "secret"}, "Transfer-Encoding"),
        ({"Content-Length": "7"}, "Content-Length"),
        ({"Connection": "secret, upgrade"}, "Connection"),
        ({"Proxy-Authorization": "secret"}, "Proxy-Authorization"),
        ({"Trailer": "secret", "Transfer-Encoding": "secret"}, "Trailer"),
        ({"Host": "secret", "host": "secret"}, "host"),
    ],
)
async def test_a_header_that_is_not_one_header_is_refused_by_name(
    transport: Transport, headers: dict[str, str], named: str
) -> None:
    async with Server(saying(answer())) as server:
        for _ in range(2):
            error = await failure(transport, HttpCall(server.url, {"X-Good": "1"} | headers))
            assert error.kind == "invalid"
            assert named in error.message
            assert "secret" not in error.message
        assert (
            await failure(transport, HttpCall(server.url, {}, method="GET / HTTP/1.1\r\nX: y\r\n"))
        ).kind == "invalid"
        assert not server.peers


@pytest.mark.parametrize(
    "path", ["/a\r\nX: 1", "/a\nb", "/a\0b", "\r\n/", "/\t", "?x=\r\n", ":99999/", "\\@evil/", " /", "é\x7f/"]
)
async def test_a_url_that_is_none_is_refused(transport: Transport, path: str) -> None:
    async with Server(saying(answer())) as server:
        error = await failure(transport, HttpCall(server.url + path, {}))
        assert error.kind == "connect"
        assert "\n" not in error.message
        assert not server.peers


async def test_a_caller_may_ask_for_the_connections_end(transport: Transport) -> None:
    async with Server(saying(answer(b"x"))) as server:
        for _ in range(2):
            assert await read(transport, HttpCall(server.url, {"connection": "close"})) == (200, b"x")
            await until(lambda: server.open == 0)
        assert len(server.peers) == 2


async def test_a_large_body_goes_out_as_the_other_side_takes_it(transport: Transport) -> None:
    body = bytes(range(256)) * 40_000  # 10 MB
    async with Server(saying(answer(b"thanks"))) as server:
        for _ in range(2):
            assert await read(transport, HttpCall(server.url, {}, body)) == (200, b"thanks")
        assert [request.body == body for request in server.requests] == [True, True]
        assert len(server.peers) == 1


async def test_an_early_answer_is_heard_while_the_body_is_still_on_its_way(transport: Transport) -> None:
    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(answer(b"too large", "413 Content Too Large"))
        await asyncio.wait_for(read_on.wait(), 5)
        await peer.gone()

    read_on = asyncio.Event()
    async with Server(play) as server:
        assert await read(transport, HttpCall(server.url, {}, b"x" * 20_000_000)) == (413, b"too large")
        read_on.set()
        await until(lambda: server.open == 0)  # half a request was sent: nobody gets this connection again


async def test_an_early_answer_does_not_stop_the_body(transport: Transport) -> None:
    body = b"x" * 20_000_000

    async def play(peer: Peer) -> None:
        await peer.head()
        await peer.say(CHUNK_HEAD)
        got = len(await peer.reader.readexactly(len(body)))
        await peer.say(b"8\r\n%d\r\n0\r\n\r\n" % got)
        await peer.gone()

    async with Server(play) as server:
        assert await read(transport, HttpCall(server.url, {}, body)) == (200, b"20000000")


# --- any split ---


class _Tape(asyncio.Transport):
    """Where a connection writes to in tests without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def heard(pieces: list[bytes], *, head: bool, ended: bool) -> tuple[Any, ...]:
    """What a connection makes of an answer that comes in these pieces."""
    pool = Pool(0, 30.0)
    connection = Connection("key", pool)
    connection.connection_made(_Tape())
    connection.begin(b"GET / HTTP/1.1\r\n\r\n", bodiless=head)
    for piece in pieces:
        connection.data_received(piece)
    if ended:
        connection.eof_received()
        connection.connection_lost(None)
    body = b"".join(connection.parts)
    return connection.status, connection.headers, body, connection.over, connection.failure, connection.reusable


ANSWERS = [
    answer(b"hello", "200 OK", "X-A: b"),
    CHUNKED,
    b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED,
    answer(b"hello") + b"more",
    answer(b"hello", "200 OK", "Connection: close") + b"\r\nmore",
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    HEAD + b"hello",
    CHUNK_HEAD + b"5\r\nhello\r\nnonsense",
    b"HTTP/1.1 204 No\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    b"nonsense\r\n\r\n",
]


@settings(deadline=None)
@given(
    st.sampled_from(ANSWERS),
    st.lists(st.integers(0, 200), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_any_split_of_the_bytes_is_the_same_answer(sent: bytes, cuts: list[int], head: bool, ended: bool) -> None:
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    pieces = [sent[a:b] for a, b in pairwise(edges) if a < b]
    assert heard(pieces, head=head, ended=ended) == heard([sent], head=head, ended=ended)


@pytest.mark.parametrize("sent", ANSWERS)
def test_byte_by_byte(sent: bytes) -> None:
    bytewise = [sent[at : at + 1] for at in range(len(sent))]
    assert heard(bytewise, head=False, ended=True) == heard([sent], head=False, ended=True)


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_nonsense_ends_in_an_answer_or_a_failure_and_never_in_an_exception(sent: bytes, ended: bool) -> None:
    heard([b"HTTP/1.1 200 OK\r\n" + sent], head=False, ended=ended)
    heard([sent], head=False, ended=ended)
    heard([CHUNK_HEAD + sent], head=False, ended=ended)


# --- compression that nobody asked for ---

TEXT = b"The quick brown fox. " * 50_000


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "packed", "body"),
    [
        ("gzip", gzip.compress(TEXT), TEXT),
        ("X-GZIP", gzip.compress(b"one ") + gzip.compress(b"two"), b"one two"),
        ("gzip", gzip.compress(b"one") + b"\0\0\0", b"one"),
        ("gzip", b"", b""),
        ("deflate", zlib.compress(TEXT), TEXT),
        ("deflate", raw_deflate(TEXT), TEXT),
        ("br", b"as it is", b"as it is"),
    ],
)
async def test_compression_nobody_asked_for_is_undone(
    transport: Transport, coding: str, packed: bytes, body: bytes
) -> None:
    async with Server(saying(answer(packed, "200 OK", f"Content-Encoding: {coding}"))) as server:
        async with await transport.send(HttpCall(server.url, {}), Timeouts()) as reply:
            assert await reply.read(LIMIT) == body
            assert ("content-encoding" in reply.headers) == (coding == "br" or not packed)
        async with await transport.send(HttpCall(server.url, {"Accept-Encoding": coding}), Timeouts()) as reply:
            assert await reply.read(LIMIT) == packed
            assert reply.headers["content-encoding"] == coding


async def test_a_bomb_grows_piece_by_piece(transport: Transport) -> None:
    packed = gzip.compress(bytes(50_000_000))
    async with Server(saying(answer(packed, "200 OK", "Content-Encoding: gzip"))) as server:
        async with await transport.send(HttpCall(server.url, {}), Timeouts()) as reply:
            sizes = []
            while piece := await reply.piece():
                sizes.append(len(piece))
        assert sum(sizes) == 50_000_000
        assert max(sizes) <= 256 * 1024


async def test_compression_that_is_wrong(transport: Transport) -> None:
    whole = gzip.compress(b"hello" * 1000)
    cases = ((b"no gzip at all", "malformed"), (whole[:20], "cut"), (whole[:-4], "cut"))
    for packed, kind in cases:
        async with Server(saying(answer(packed, "200 OK", "Content-Encoding: gzip"))) as server:
            assert (await failure(transport, HttpCall(server.url, {}))).kind == kind
