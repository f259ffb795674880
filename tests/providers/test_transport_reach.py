"""Where calls may go and how they get there: public addresses, names with several, proxies, TLS."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers import dial
from loomgate.providers.dialect import HttpCall
from loomgate.providers.http1 import Connection
from loomgate.providers.pool import Pool
from loomgate.providers.transport import Limits, Timeouts, Transport
from tests.support.authority import Authority
from tests.support.peer import Peer, Server, answer, saying
from tests.support.waiting import settle, until

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    made = Transport()
    yield made
    await made.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def trusting(authority: Authority) -> AsyncIterator[Transport]:
    made = Transport(Limits(ca_file=str(authority.ca_file)))
    yield made
    await made.close()


async def read(transport: Transport, call: HttpCall) -> bytes:
    async with await transport.send(call, Timeouts()) as reply:
        assert reply.status == 200
        return await reply.read(100_000_000)


async def failure(transport: Transport, call: HttpCall) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await read(transport, call)
    assert "\n" not in caught.value.message
    return caught.value


# --- public addresses ---


@pytest.mark.parametrize(
    "address",
    "1.1.1.1 8.8.8.8 172.15.0.1 172.32.0.1 100.63.0.1 100.128.0.1 192.0.1.1 223.255.255.255 198.17.0.1 "
    "2606:4700:4700::1111 2a00:1450::1 2002:101:101::1 64:ff9b::808:808 ::ffff:8.8.8.8 2001:4860:4860::8888".split(),
)
def test_addresses_of_the_public_internet(address: str) -> None:
    assert dial.is_public(address)


@pytest.mark.parametrize(
    "address",
    "0.0.0.0 0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.0.0.1 127.255.0.1 168.63.129.16 169.254.169.254 "
    "172.16.0.1 172.31.255.255 192.0.0.170 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1 198.51.100.1 "
    "203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 "
    "::ffff:10.0.0.1 ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 "
    "2001:db8::1 2001:10::1 2002:7f00:1::1 2002:c0a8:1::1 3fff::1 5f00::1 fc00::1 fd12::1 fe80::1 fe80::1%lo "
    "fec0::1 ff02::1 4000::1 localhost".split(),
)
def test_addresses_that_are_none(address: str) -> None:
    assert not dial.is_public(address)


@pytest.mark.parametrize(
    "host", "127.0.0.1 localhost [::1] [::ffff:127.0.0.1] 127.1 2130706433 0x7f000001 017700000001 0".split()
)
async def test_public_only_refuses_whatever_leads_inside(transport: Transport, host: str) -> None:
    async with Server(saying(answer(b"secret"))) as server:
        url = f"http://{host}:{server.port}/"
        error = await failure(transport, HttpCall(url, {}, public_only=True))
        assert error.kind == "connect"
        assert "public internet" in error.message or "No connection" in error.message
        assert not server.peers


async def test_public_only_calls_do_not_share_connections_with_others(transport: Transport) -> None:
    async with Server(saying(answer(b"x"))) as server:
        call = HttpCall(f"http://localhost:{server.port}/", {})
        assert await read(transport, call) == b"x"
        error = await failure(transport, HttpCall(call.url, {}, public_only=True))
        assert "localhost is not an address of the public internet" in error.message
        assert await read(transport, call) == b"x"
        assert len(server.peers) == 1


async def test_the_checked_address_is_the_one_that_is_connected_to(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that changes its mind between the check and the connection gains nothing: it is asked once."""
    async with Server(saying(answer(b"x"))) as server:
        asked: list[str] = []
        answers = [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"], ["127.0.0.1"]]

        async def resolve(host: str, port: int, **_: object) -> list[Any]:
            asked.append(host)
            return [(2, 1, 6, "", (address, port)) for address in answers[len(asked) - 1]]

        loop = asyncio.get_running_loop()
        if not hasattr(loop, "__dict__"):
            pytest.skip("this event loop cannot be given other names")
        monkeypatch.setattr(loop, "getaddrinfo", resolve)
        url = f"http://rebinding.example:{server.port}/"
        assert (
            await failure(transport, HttpCall(url, {}, public_only=True))
        ).kind == "connect"  # one of two is private
        monkeypatch.setattr(dial, "is_public", lambda address: True)
        assert await read(transport, HttpCall(url, {}, public_only=True)) == b"x"
        assert len(asked) == 2


# --- names with several addresses ---


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


async def test_the_next_address_is_tried(transport: Transport) -> None:
    async with Server(hold) as server:
        pool = Pool(0, 30.0)
        good = ("127.0.0.1", server.port)
        bad = ("127.0.0.1", closed_port())
        for addresses in ([bad, good], [good, bad], [bad, bad, good]):
            connection = await dial._first(addresses, lambda: Connection("key", pool))
            assert connection.transport is not None
            connection.abort()
        with pytest.raises(ConnectionRefusedError):
            await dial._first([bad, bad], lambda: Connection("key", pool))
        await until(lambda: server.open == 0)
        assert not pool.all


async def test_an_address_that_does_not_answer_costs_a_moment() -> None:
    pool = Pool(0, 30.0)
    async with Server(hold) as server:
        with contextlib.ExitStack() as stack:
            silent = stack.enter_context(socket.socket())
            silent.bind(("127.0.0.1", 0))
            silent.listen(0)
            for _ in range(3):  # with its queue full, the system answers nobody
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(silent.getsockname())
            addresses = [silent.getsockname(), ("127.0.0.1", server.port)]
            began = clock.monotonic()
            connection = await dial._first(addresses, lambda: Connection("key", pool))
            assert 0.2 < clock.monotonic() - began < 2
            connection.abort()
            for turns in range(4):  # leaving while several are tried
                task = asyncio.create_task(dial._first(addresses[:1] * 2, lambda: Connection("key", pool)))
                await asyncio.sleep(0.1 * turns)
                task.cancel()
                await asyncio.wait([task])
        await until(lambda: server.open == 0)
        await settle()
        assert not pool.all


async def hold(peer: Peer) -> None:
    await peer.gone()


async def test_no_such_name_and_nobody_there(transport: Transport) -> None:
    error = await failure(transport, HttpCall("http://no-such-name.invalid/", {}))
    assert (error.kind, "No connection to no-such-name.invalid: " in error.message) == ("connect", True)
    error = await failure(transport, HttpCall(f"http://127.0.0.1:{closed_port()}/", {}))
    assert (error.kind, error.message) == ("connect", "No connection to 127.0.0.1: Connection refused")


# --- TLS ---


async def test_tls_with_an_authority_of_ones_own(trusting: Transport, authority: Authority) -> None:
    context = authority.context("localhost", "127.0.0.1")
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    body = b"x" * 3_000_000
    async with Server(saying(answer(body)), tls=context) as server:
        for url in (f"https://localhost:{server.port}/", server.url):
            for _ in range(3):
                assert await read(trusting, HttpCall(url, {}, body)) == body
        assert asked == ["localhost", None]  # an address is no server name
        assert len(server.peers) == 2
        assert [request.body == body for request in server.requests] == [True] * 6
        await trusting.close()
        await until(lambda: server.open == 0)


async def test_certificates_are_checked(trusting: Transport, authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    cases = (
        (stranger.context("127.0.0.1"), "The certificate of 127.0.0.1 is not trusted: "),
        (authority.context("elsewhere.example"), "The certificate of 127.0.0.1 is not trusted: IP address mismatch"),
    )
    for context, said in cases:
        async with Server(saying(answer()), tls=context) as server:
            error = await failure(trusting, HttpCall(server.url, {}))
            assert (error.kind, error.message.startswith(said)) == ("connect", True), error.message
            assert not server.requests

    async def plain(peer: Peer) -> None:
        await peer.say(answer())
        await peer.gone()

    async with Server(plain) as server:
        error = await failure(trusting, HttpCall(f"https://127.0.0.1:{server.port}", {}))
        assert (error.kind, error.message[:21]) == ("connect", "No TLS with 127.0.0.1")


async def test_no_file_of_authorities(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nothing")
    async with Server(hold) as server:
        for file in (tmp_path / "missing.pem", nonsense):
            transport = Transport(Limits(ca_file=str(file)))
            error = await failure(transport, HttpCall(f"https://127.0.0.1:{server.port}", {}))
            assert (error.kind, str(file) in error.message) == ("connect", True)
            await transport.close()


async def test_a_slow_reader_over_tls(trusting: Transport, authority: Authority) -> None:
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")
        while sent < 50_000_000:
            await peer.say(b"x" * 50_000)
            sent += 50_000
        await peer.gone()

    server = Server(play, tls=authority.context("127.0.0.1"))
    async with server, await trusting.send(HttpCall(server.url, {}), Timeouts()) as reply:
        got = len(await reply.piece())
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < 20_000_000
        while size := len(await reply.piece()):
            got += size
            assert size < 1_000_000
        assert got == 50_000_000


# --- proxies ---


def proxying(*refusals: bytes) -> Any:
    """A proxy's way with ``CONNECT``: first these answers, then a way through."""
    left = list(refusals)

    async def play(peer: Peer) -> None:
        request = await peer.head()
        assert request is not None
        if left:
            await peer.say(left.pop(0))
            await peer.gone()
            return
        _, place, _ = request.line.split()
        host, _, port = place.rpartition(":")
        there, back = await asyncio.open_connection({"far.example": "127.0.0.1"}.get(host, host), int(port))
        await peer.say(b"HTTP/1.1 200 Connection established\r\nContent-Length: 7\r\n\r\n")

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(peer.reader, back), pass_on(there, peer.writer))

    return play


async def test_a_tunnel_through_a_proxy(
    trusting: Transport, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = authority.context("far.example")
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    async with Server(saying(answer(b"far")), tls=context) as far, Server(proxying()) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:p%40ss@"))
        for _ in range(3):
            assert await read(trusting, HttpCall(f"https://far.example:{far.port}/x", {"X-Key": "secret"})) == b"far"
        (asking,) = proxy.requests
        assert asking.line == f"CONNECT far.example:{far.port} HTTP/1.1"
        assert asking.headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"
        assert "x-key" not in asking.headers
        assert asked == ["far.example"]
        assert [request.line for request in far.requests] == ["POST /x HTTP/1.1"] * 3
        assert "proxy-authorization" not in far.requests[0].headers
        await trusting.close()
        await until(lambda: proxy.open == far.open == 0)


async def test_a_proxy_that_is_spoken_to_by_tls(
    trusting: Transport, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = authority.context("far.example")
    async with (
        Server(saying(answer(b"far")), tls=context) as far,
        Server(proxying(), tls=authority.context("127.0.0.1")) as proxy,
    ):
        monkeypatch.setenv("https_proxy", proxy.url)
        assert await read(trusting, HttpCall(f"https://far.example:{far.port}/x", {})) == b"far"
        assert [request.line for request in proxy.requests] == [f"CONNECT far.example:{far.port} HTTP/1.1"]
        await trusting.close()
        await until(lambda: proxy.open == far.open == 0)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (answer(b"who are you?", "407 Proxy Authentication Required"), "it answered 407"),
        (answer(b"", "502 Bad Gateway"), "it answered 502"),
        (b"SSH-2.0-nonsense\r\n\r\n", "it closed the connection"),
        (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "says more"),
    ],
)
async def test_a_proxy_that_does_not_lead_there(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, sent: bytes, said: str
) -> None:
    async with Server(proxying(sent)) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:secret@"))
        error = await failure(transport, HttpCall("https://far.example/", {}))
        assert error.kind == "connect"
        assert said in error.message
        assert "secret" not in error.message
        await until(lambda: proxy.open == 0)


async def test_plain_calls_through_a_proxy(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Server(saying(answer(b"by proxy"))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removeprefix("http://").replace("127", "user:pass@127", 1))
        monkeypatch.setenv("no_proxy", "direct.invalid")
        for _ in range(2):
            assert await read(transport, HttpCall("http://far.example:81/a?b", {})) == b"by proxy"
        request = proxy.requests[-1]
        assert request.line == "POST http://far.example:81/a?b HTTP/1.1"
        assert request.headers["host"] == "far.example:81"
        assert request.headers["proxy-authorization"] == "Basic dXNlcjpwYXNz"
        assert len(proxy.peers) == 1
        error = await failure(transport, HttpCall("http://direct.invalid/", {}))
        assert "No connection to direct.invalid" in error.message
        for url in (f"http://localhost:{proxy.port}/", "http://10.0.0.1/", "http://name.invalid/"):
            assert (await failure(transport, HttpCall(url, {}, public_only=True))).kind == "connect"
        assert await read(transport, HttpCall("http://8.8.8.8/", {}, public_only=True)) == b"by proxy"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "http://", "http://[::1", "http://a b"])
async def test_what_is_no_proxy(transport: Transport, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    error = await failure(transport, HttpCall("http://far.example/", {}))
    assert (error.kind, error.message) == ("connect", "http_proxy is not the http URL of a proxy.")


async def test_nobody_listens_at_the_proxy(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    error = await failure(transport, HttpCall("http://far.example/", {}))
    assert error.message == "No connection to the proxy 127.0.0.1: Connection refused"


def test_the_system_is_trusted_as_well(authority: Authority) -> None:
    alone = ssl.create_default_context().cert_store_stats()["x509"]
    together = dial.Dialer(str(authority.ca_file))._trusted().cert_store_stats()["x509"]
    assert together == alone + 1
