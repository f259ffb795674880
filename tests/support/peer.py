"""The other end of a connection, byte by byte: a server on 127.0.0.1 whose every answer is written by the test.

What must live here: reading a request as it came, and saying exactly what goes back. What must not: HTTP as any
library understands it, or else what the library mends could not be tested.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Request:
    """A request as it came; header names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes
    head: bytes


@dataclass
class Peer:
    """One connection as its server sees it."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: list[Request] = field(default_factory=list)

    async def head(self) -> Request | None:
        """The next request's line and headers, its body still unread; None when the client is gone."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *lines = head.decode("utf-8", "replace").split("\r\n")
        pairs = (one.split(": ", 1) for one in lines if one)
        self.requests.append(Request(line, {name.lower(): value for name, value in pairs}, b"", head))
        return self.requests[-1]

    async def request(self) -> Request | None:
        """The next request with its body; None when the client is gone."""
        request = await self.head()
        if request is not None:
            request.body = await self.reader.readexactly(int(request.headers.get("content-length", "0")))
        return request

    async def say(self, data: bytes) -> None:
        """Send ``data`` as it is."""
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Until the client has closed the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


class Server:
    """``async with Server(play) as server``: ``play`` gets each connection and closes it by returning."""

    def __init__(self, play: Callable[[Peer], Awaitable[None]], tls: ssl.SSLContext | None = None) -> None:
        self._play = play
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.open = 0
        self.failures: list[BaseException] = []
        self.port = 0

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """All requests, connection by connection."""
        return [request for peer in self.peers for request in peer.requests]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        if kind is None:
            assert not self.failures, self.failures

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        self.peers.append(Peer(len(self.peers) + 1, reader, writer))
        try:
            await self._play(self.peers[-1])
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as failure:
            self.failures.append(failure)
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()


def saying(*answers: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Give these answers, one a request, the last one again and again; the connection stays open."""

    async def play(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.say(answers[min(len(peer.requests), len(answers)) - 1])

    return play


def answer(body: bytes = b"", status: str = "200 OK", *more: str) -> bytes:
    """An answer with a length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body
