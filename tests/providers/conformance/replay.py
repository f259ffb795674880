"""A small HTTP server that answers with given bytes: what a vendor would send, over a real connection.

What must live here: HTTP/1.1 as far as a model call needs it. What must not: what the bytes mean.
"""

import asyncio
import contextlib
from typing import NamedTuple, Self

import msgspec


class Canned(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. The body is sent in pieces of ``piece`` bytes; ``broken`` closes the connection instead of ending."""

    status: int = 200
    headers: dict[str, str] = {}
    body: bytes = b""
    piece: int = 61
    broken: bool = False


class Asked(NamedTuple):
    """A request as it came: the target of its request line, headers with lower-case names, and body."""

    target: str
    headers: dict[str, str]
    body: bytes


class Replay:
    """The server: ``async with Replay(first, second) as server``; an answer for each request, the last one for all
    further ones."""

    def __init__(self, *answers: Canned) -> None:
        self._answers = list(answers)
        self.asked: list[Asked] = []
        self.base_url = ""
        self._serving: set[asyncio.Task[None]] = set()

    def play(self, *answers: Canned) -> None:
        """Answer with these from now on, and forget what was asked."""
        self._answers = list(answers)
        self.asked.clear()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: one that asyncio makes complains when it is cancelled.
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append(Asked(head[0].split(" ")[1], headers, body))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        lines = [f"HTTP/1.1 {answer.status} Status", "Transfer-Encoding: chunked"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        for at in range(0, len(answer.body), answer.piece):
            piece = answer.body[at : at + answer.piece]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        if answer.broken:
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True
