"""``/v1/realtime``: WebSockets through the gateway, to a stand-in for a vendor's endpoint."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server as Endpoint
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from loomgate.settings import Provider, Secret
from tests.support.server import Client, Server
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

SECRET = "sk-operator-0123456789abcdef"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Vendor:
    """A realtime endpoint that does what a message asks for: ``close CODE REASON``, ``break``, else an echo."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.closed: list[tuple[int | None, str | None]] = []
        self.taken: list[int] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.url = ""
        self.refusal: tuple[int, str] | None = None
        self.open = 0

    async def play(self, ws: ServerConnection) -> None:
        self.seen.append(ws.request)
        self.open += 1
        try:
            async for message in ws:
                await self.reads.wait()
                self.taken.append(len(message))
                if isinstance(message, str) and message.startswith("close"):
                    _, code, reason = message.split(" ", 2)
                    await ws.send("last words")
                    await ws.close(int(code), reason)
                elif message == "break":
                    ws.transport.abort()
                elif message == "flood":
                    for _ in range(200):
                        await ws.send("x" * 100_000)
                        self.taken.append(0)
                else:
                    await ws.send(message)
        finally:
            await ws.wait_closed()
            self.closed.append((ws.close_code, ws.close_reason))
            self.open -= 1

    def check(self, connection: ServerConnection, request: Any) -> Any:
        if self.refusal is not None:
            return connection.respond(*self.refusal)
        return None


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    made = Vendor()
    server: Endpoint
    subprotocols: Any = ["realtime"]
    async with serve(
        made.play,
        "127.0.0.1",
        0,
        process_request=made.check,
        subprotocols=subprotocols,
        select_subprotocol=lambda _, offered: "realtime" if "realtime" in offered else None,  # type: ignore[arg-type,return-value]
        max_size=32 * 1024 * 1024,
    ) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        yield made


@pytest.fixture
def made(make_server: Callable[..., Server], vendor: Vendor) -> Server:
    provider = Provider(name="openai", vendor="openai", base_url=vendor.url, api_key=Secret(SECRET))
    own = Provider(name="own", vendor="openai-compatible", base_url=vendor.url)
    azure = Provider(
        name="azure", vendor="azure-openai", base_url=vendor.url.replace("/v1", "/openai"), api_key=Secret(SECRET)
    )
    chats = Provider(name="chats", vendor="groq", base_url=vendor.url, api_key=Secret(SECRET))
    return make_server(key=True, providers={"openai": provider, "own": own, "azure": azure, "chats": chats})


def dial(made: Server, query: str = "model=gpt-realtime", key: bool = True, **more: Any) -> connect:
    headers = {"Authorization": f"Bearer {made.key}"} if key else {}
    headers |= more.pop("headers", {"x-portkey-provider": "openai"})
    url = made.url.replace("http", "ws", 1) + "/v1/realtime?" + query
    return connect(url, additional_headers=headers, max_size=None, proxy=None, **more)


async def broken_off(ws: ClientConnection) -> AsyncIterator[Any]:
    with contextlib.suppress(ConnectionClosed):
        async for message in ws:
            yield message


async def log_of(made: Server) -> dict[str, Any]:
    client = Client(made.url, made.key)

    def found() -> Any:
        page = client.raw("GET", "/v1/logs", None, {"OpenAI-Beta": ""}, check=False).json
        return page["data"]

    async with asyncio.timeout(10):
        while not (rows := await asyncio.to_thread(found)):  # noqa: ASYNC110 - it is asked for over HTTP
            await asyncio.sleep(0.05)
    return rows[0]


@pytest.mark.behaviour("RT-02")
async def test_messages_pass_both_ways(made: Server, vendor: Vendor) -> None:
    async with dial(
        made, "model=gpt-realtime&call_id=7", headers={"x-portkey-provider": "openai", "OpenAI-Beta": "realtime=v1"}
    ) as ws:
        for message in ("grüß dich", b"\x00\xff" * 10, "", "x" * 300_000):
            await ws.send(message)
            assert await ws.recv() == message
        headers = ws.response.headers if ws.response is not None else {}
        assert headers["x-portkey-provider"] == "openai"
        assert headers["x-request-id"]
        await ws.close(4002, "enough")
    request = vendor.seen[0]
    assert request.path == "/v1/realtime?model=gpt-realtime&call_id=7"
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert request.headers["openai-beta"] == "realtime=v1"
    assert not [name for name in request.headers if name.lower().startswith("x-portkey")]
    await until(lambda: vendor.closed)
    assert vendor.closed == [(4002, "enough")]
    row = await log_of(made)
    assert (row["response"]["status"], row["loomgate"]["endpoint"], row["loomgate"]["error"]) == (101, "realtime", None)
    assert (row["metrics"]["ai_model"], row["metrics"]["is_success"]) == ("gpt-realtime", True)
    assert SECRET not in json.dumps(row)


@pytest.mark.behaviour("RT-02")
@pytest.mark.parametrize(
    ("said", "code", "reason"),
    [("close 4001 tired of it", 4001, "tired of it"), ("break", 1011, "The endpoint broke the connection.")],
)
async def test_the_endpoint_goes(made: Server, vendor: Vendor, said: str, code: int, reason: str) -> None:
    async with dial(made) as ws:
        await ws.send(said)
        assert [message async for message in broken_off(ws)] == (["last words"] if said != "break" else [])
        assert (ws.close_code, ws.close_reason) == (code, reason)


async def test_the_client_vanishes(made: Server, vendor: Vendor) -> None:
    ws: ClientConnection = await dial(made)
    await ws.send("hello")
    assert await ws.recv() == "hello"
    ws.transport.abort()
    await until(lambda: not vendor.open)


async def test_who_does_not_read_is_not_sent_more(made: Server, vendor: Vendor) -> None:
    async with dial(made, max_queue=1) as ws:
        await ws.send("flood")
        await asyncio.sleep(0.5)
        # 20 MB are under way; what waits in between is bounded.
        assert len(vendor.taken) < 190
        for _ in range(200):
            assert len(await ws.recv()) == 100_000


async def test_an_endpoint_that_does_not_read_holds_its_client(made: Server, vendor: Vendor) -> None:
    ws: ClientConnection = await dial(made)
    vendor.reads.clear()
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.7):
            for _ in range(1000):
                await ws.send(b"y" * 100_000)
                sent += 1
    assert 0 < sent < 500
    ws.transport.abort()
    vendor.reads.set()
    await until(lambda: not vendor.open)


async def test_a_message_that_is_too_long(made: Server, vendor: Vendor) -> None:
    async with dial(made) as ws:
        with contextlib.suppress(ConnectionClosed):
            await ws.send(b"z" * (17 * 1024 * 1024))
        await ws.wait_closed()
        assert ws.close_code == 1009
    assert vendor.taken == []


@pytest.mark.behaviour("RT-02")
async def test_a_browsers_form(made: Server, vendor: Vendor) -> None:
    subprotocols: Any = ["realtime", f"openai-insecure-api-key.{made.key}"]
    async with dial(made, "x-portkey-provider=own&model=m", key=False, headers={}, subprotocols=subprotocols) as ws:
        assert ws.subprotocol == "realtime"
        await ws.send("hello")
        assert await ws.recv() == "hello"
    request = vendor.seen[0]
    assert request.path == "/v1/realtime?model=m"
    assert request.headers["sec-websocket-protocol"] == "realtime"
    assert "authorization" not in request.headers


@pytest.mark.behaviour("RT-02")
@pytest.mark.parametrize(
    ("named", "path"),
    [
        ({"x-portkey-provider": "own"}, "/v1/realtime?model=gpt-realtime"),
        ({"x-portkey-provider": "azure"}, "/openai/v1/realtime?model=gpt-realtime"),
        (
            {"x-portkey-provider": "azure", "x-portkey-azure-api-version": "2024-10-01-preview"},
            "/openai/realtime?api-version=2024-10-01-preview&deployment=gpt-realtime",
        ),
        ({"x-portkey-config": '{"provider":"own","override_params":{"model":"b c"}}'}, "/v1/realtime?model=b%20c"),
    ],
)
async def test_where_it_goes(made: Server, vendor: Vendor, named: dict[str, str], path: str) -> None:
    async with dial(made, headers=named) as ws:
        await ws.send("hello")
        assert await ws.recv() == "hello"
    assert vendor.seen[0].path == path


@pytest.mark.parametrize(
    ("headers", "path", "status", "said"),
    [
        ({"Authorization": "Bearer no"}, "/v1/realtime?model=m", 401, "Incorrect API key"),
        ({"x-portkey-provider": "nobody"}, "/v1/realtime?model=m", 400, "Invalid provider"),
        ({"x-portkey-provider": "chats"}, "/v1/realtime?model=m", 500, "realtime is not supported by groq"),
        ({}, "/v1/threads", 404, "Invalid URL"),
        ({"x-portkey-provider": "own"}, "/v1/realtime?model=m", 403, "not for you"),
    ],
)
async def test_refusals(
    made: Server, vendor: Vendor, headers: dict[str, str], path: str, status: int, said: str
) -> None:
    vendor.refusal = (403, "not for you")
    url = made.url.replace("http", "ws", 1) + path
    given = {"Authorization": f"Bearer {made.key}", **headers}
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, additional_headers=given, proxy=None):
            pass
    response = caught.value.response
    assert response.status_code == status
    assert said in json.loads(response.body or b"")["error"]["message"]


async def test_without_a_handshake(made: Server) -> None:
    found = await asyncio.to_thread(
        lambda: Client(made.url, made.key).raw("GET", "/v1/realtime?model=m", None, {"OpenAI-Beta": ""}, check=False)
    )
    assert (found.status, found.headers["upgrade"]) == (426, "websocket")


@pytest.mark.behaviour("RT-02")
async def test_the_official_client(made: Server, vendor: Vendor) -> None:
    async with (
        openai.AsyncOpenAI(
            api_key=made.key, base_url=f"{made.url}/v1", default_headers={"x-portkey-provider": "openai"}
        ) as client,
        client.realtime.connect(model="gpt-realtime", extra_headers={"x-portkey-provider": "openai"}) as connection,
    ):
        audio = base64.b64encode(b"\x01\x02").decode()
        await connection.input_audio_buffer.append(audio=audio)
        event: Any = await connection.recv()
        assert (event.type, event.audio) == ("input_audio_buffer.append", audio)
    assert vendor.seen[0].path == "/v1/realtime?model=gpt-realtime"
    assert vendor.seen[0].headers["authorization"] == f"Bearer {SECRET}"
