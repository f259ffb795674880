"""Answers as they go over the wire: a short one in one piece, and what uvicorn refuses is still refused."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from loomgate.http.protocol import WHOLE, Protocol

ASK = b"GET /a%20b?c=d HTTP/1.1\r\nhost: x\r\n\r\n"
Header = tuple[bytes, bytes]


async def _answered(messages: Sequence[dict[str, Any]], asked: bytes = ASK) -> tuple[list[bytes], dict[str, Any]]:
    """The writes that ``messages`` become, and the scope of the request that ``asked`` is."""
    scopes: list[dict[str, Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(dict(scope))
        for message in messages:
            await send(message)

    config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None, server_header=False)
    config.load()
    state = uvicorn.Server(config).server_state
    writes: list[bytes] = []

    class Sink(asyncio.Transport):
        closed = False

        def write(self, data: Any) -> None:
            writes.append(bytes(data))

        def close(self) -> None:
            self.closed = True

        def is_closing(self) -> bool:
            return self.closed

        def pause_reading(self) -> None:
            pass

        def resume_reading(self) -> None:
            pass

    protocol = Protocol(config, state, {})
    protocol.connection_made(Sink())
    protocol.data_received(asked)
    for _ in range(3):  # one pipelined request after the other
        await asyncio.gather(*state.tasks)
        await asyncio.sleep(0)
    if protocol.timeout_keep_alive_task is not None:
        protocol.timeout_keep_alive_task.cancel()
    return writes, scopes[0]


def answered(messages: Sequence[dict[str, Any]], asked: bytes = ASK) -> tuple[list[bytes], dict[str, Any]]:
    return asyncio.run(_answered(messages, asked))


def whole(body: bytes, *headers: Header, length: int | None = None, status: int = 200) -> list[dict[str, Any]]:
    said = b"%d" % (len(body) if length is None else length)
    head = [*headers, (b"content-length", said)]
    start = {"type": "http.response.start", "status": status, "headers": head}
    return [start, {"type": "http.response.body", "body": body}]


def test_a_short_answer_is_one_write() -> None:
    writes, scope = answered(whole(b"{}", (b"x-a", b"b")))
    assert writes == [b"HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 2\r\n\r\n{}"]
    assert (scope["method"], scope["path"], scope["raw_path"], scope["query_string"]) == (
        "GET",
        "/a b",
        b"/a%20b",
        b"c=d",
    )


def test_a_client_that_wants_no_more_is_told_so() -> None:
    writes, _ = answered(whole(b"{}"), ASK.replace(b"host", b"connection: close\r\nhost"))
    assert b"".join(writes).endswith(b"\r\nconnection: close\r\n\r\n{}")


def test_the_head_of_a_stream_does_not_wait() -> None:
    start = {"type": "http.response.start", "status": 200, "headers": []}
    parts = [{"type": "http.response.body", "body": piece, "more_body": bool(piece)} for piece in (b"one", b"")]
    writes, _ = answered([start, *parts])
    assert writes[0].endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert writes[1:] == [b"3\r\none\r\n", b"0\r\n\r\n"]


def test_head_has_no_body() -> None:
    writes, _ = answered(whole(b"{}"), ASK.replace(b"GET", b"HEAD"))
    assert b"".join(writes).endswith(b"content-length: 2\r\n\r\n")


@pytest.mark.parametrize(
    "messages",
    [
        whole(b"{}", (b"x-a", b"b\r\nset-cookie: c=d")),
        whole(b"{}", (b"x-a", b"b\nc")),
        whole(b"{}", (b"x-a", b"b\0c")),
        whole(b"{}", length=1),
    ],
)
def test_what_would_not_be_one_answer_is_refused(messages: list[dict[str, Any]]) -> None:
    writes, _ = answered(messages)
    assert b"set-cookie" not in b"".join(writes)
    assert not b"".join(writes).endswith(b"\r\n\r\n{}")


def test_a_failure_before_the_body_is_told() -> None:
    writes, _ = answered(whole(b"")[:1])
    assert writes[0].startswith(b"HTTP/1.1 500 ")


def test_requests_in_a_row_are_answered_in_their_order() -> None:
    writes, _ = answered(whole(b"{}"), ASK + ASK)
    assert b"".join(writes).count(b"HTTP/1.1 200 OK") == 2


def test_a_whole_answer_may_be_one_message() -> None:
    message = {"type": WHOLE, "status": 200, "headers": [(b"content-length", b"2")], "body": b"{}"}
    writes, scope = answered([message])
    assert writes == [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"]
    assert WHOLE in scope["extensions"]
    writes, _ = answered([message], ASK.replace(b"GET", b"HEAD"))
    assert b"".join(writes) == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
    writes, _ = answered([{**message, "headers": [(b"x-a", b"b\nc"), (b"content-length", b"2")]}])
    assert not b"".join(writes).endswith(b"\r\n\r\n{}")


def test_a_connection_is_closed_when_it_was_unused_for_as_long_as_uvicorn_says() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in whole(b"{}"):
            await send(message)

    async def used() -> None:
        config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None, timeout_keep_alive=1)
        config.load()
        made: list[Protocol] = []

        def connected() -> Protocol:
            made.append(Protocol(config, uvicorn.Server(config).server_state, {}))
            return made[-1]

        loop = asyncio.get_running_loop()
        asked = loop.time()
        server = await loop.create_server(connected, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        for _ in range(2):
            writer.write(ASK)
            await reader.readuntil(b"{}")
            asked = loop.time()
            await asyncio.sleep(0.3)
        assert await reader.read() == b""
        assert loop.time() - asked >= 0.95  # counted from the last answer
        assert made[0].timeout_keep_alive_task is None
        writer.close()
        server.close()

    asyncio.run(used())
