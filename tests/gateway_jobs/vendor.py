"""A vendor whose services keep what they are given: the base of the stand-ins for jobs.

What must live here: HTTP, and what every test asks of it. What must not: a vendor's format.
"""

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

from tests.support.peer import Peer, Request, Server


class Said(NamedTuple):
    """An answer."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


class Asked(NamedTuple):
    """A request, its line taken apart; ``path`` with its escapes."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    target: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


def told(body: Any, status: int = 200, **headers: str) -> Said:
    """An answer in JSON."""
    return Said(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


def lines(*rows: Any) -> bytes:
    """A file of JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(data: bytes) -> list[Any]:
    """The rows of one."""
    return [json.loads(line) for line in data.splitlines()]


class Vendor:
    """Routes are methods that are marked with `route`; ``refusal`` answers everything instead."""

    def __init__(self) -> None:
        self._server = Server(self._play)
        self.asked: list[Asked] = []
        self.refusal: Said | None = None

    async def start(self) -> Self:
        """Listen on 127.0.0.1."""
        await self._server.__aenter__()
        return self

    async def stop(self) -> None:
        """End every connection; fails if a route did."""
        await self._server.__aexit__(None)

    @property
    def url(self) -> str:
        """Its address."""
        return self._server.url

    @property
    def did(self) -> list[str]:
        """Methods and paths of the requests so far."""
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    async def _play(self, peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            asked = _asked(request)
            self.asked.append(asked)
            said = self.refusal or self._routed(asked)
            size = {"Content-Length": str(len(said.body)), **said.headers}
            head = [f"HTTP/1.1 {said.status} OK", *(f"{name}: {value}" for name, value in size.items()), "", ""]
            await peer.say("\r\n".join(head).encode() + (said.body if asked.method != "HEAD" else b""))

    def _routed(self, asked: Asked) -> Said:
        for name in dir(type(self)):
            made = getattr(type(self), name)
            pattern = getattr(made, "pattern", None)
            if pattern is not None and (found := pattern.fullmatch(f"{asked.method} {asked.path}")):
                return made(self, asked, **found.groupdict())
        return Said(404, b"no such route: " + asked.path.encode())


def route(pattern: str) -> Callable[[Any], Any]:
    """Marks what answers requests whose method and path fit, whose groups it is given by name."""

    def mark(made: Any) -> Any:
        made.pattern = re.compile(pattern)
        return made

    return mark


def _asked(request: Request) -> Asked:
    method, target, _ = request.line.split(" ")
    parts = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    return Asked(method, parts.path, query, request.headers, request.body, target)
