"""A thin HTTP client that knows how an answer failed to come. One connection a request; nothing is tried again here."""

import asyncio
import json
from asyncio import StreamReader
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

_HEADERS = {"Host": "127.0.0.1", "OpenAI-Beta": "assistants=v2", "Connection": "close"}


class Lost(Exception):
    """No answer came, or one that does not say whether it was done (5xx)."""


class Refused(Exception):
    """An answer that says no: 4xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Answer:
    """The head of an answer, and its body to be read. Everything in it raises `Lost` when it breaks off."""

    def __init__(self, reader: StreamReader, status: int, headers: dict[str, str]) -> None:
        self._reader = reader
        self.status, self.headers = status, headers

    async def pieces(self, patience: float) -> AsyncIterator[bytes]:
        """The body as it comes; each piece within ``patience`` seconds."""
        try:
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(await asyncio.wait_for(self._reader.readline(), patience) or b"x", 16):
                    async with asyncio.timeout(patience):
                        yield (await self._reader.readexactly(size + 2))[:-2]
            elif "content-length" in self.headers:
                async with asyncio.timeout(patience):
                    yield await self._reader.readexactly(int(self.headers["content-length"]))
            else:
                while piece := await asyncio.wait_for(self._reader.read(65536), patience):
                    yield piece
        except (OSError, EOFError, ValueError) as error:
            raise Lost(f"the answer broke off: {error!r}") from None

    async def json(self, patience: float) -> Any:
        """The body as JSON. Raises `Refused` and `Lost` by the status, too."""
        body = b"".join([piece async for piece in self.pieces(patience)])
        if self.status == 200:
            return json.loads(body)
        said = body.decode(errors="replace")
        if self.status >= 500:
            raise Lost(f"{self.status}: {said[:300]}")
        with suppress(ValueError, KeyError, TypeError):
            said = json.loads(body)["error"]["message"]
        raise Refused(self.status, said)


@asynccontextmanager
async def asked(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    patience: float = 8.0,
) -> AsyncGenerator[Answer, None]:
    """Ask the server at ``port`` once; its answer's head within ``patience`` seconds. Raises `Lost`."""
    encoded = b"" if body is None else json.dumps(body).encode()
    given = {**_HEADERS, **(headers or {})}
    if method != "GET":
        given |= {"Content-Type": "application/json", "Content-Length": str(len(encoded))}
    head = "\r\n".join([f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""])
    writer = None
    try:
        try:
            async with asyncio.timeout(patience):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(head.encode() + encoded)
                status = int((await reader.readline()).split()[1])
                found: dict[str, str] = {}
                while line := (await reader.readline()).strip():
                    name, _, value = line.decode().partition(":")
                    found[name.lower()] = value.strip().lower()
        except (OSError, IndexError, ValueError) as error:
            raise Lost(f"no answer: {error!r}") from None
        yield Answer(reader, status, found)
    finally:
        if writer is not None:
            writer.transport.abort()


async def ask(port: int, method: str, path: str, body: object = None, patience: float = 8.0) -> Any:
    """One request, once; its answer as JSON. Raises `Lost` and `Refused`."""
    async with asked(port, method, path, body, patience=patience) as answer:
        return await answer.json(patience)


async def blocks(answer: Answer, patience: float) -> AsyncIterator[str]:
    """The blocks of an event stream, each as soon as it is whole. Raises `Lost` when the stream breaks off."""
    rest = ""
    async for piece in answer.pieces(patience):
        *whole, rest = (rest + piece.decode()).split("\n\n")
        for block in whole:
            yield block
    if rest:
        raise Lost("a block of the stream is not whole")
