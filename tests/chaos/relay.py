"""A TCP relay between a node and a server behind it, so that its connections can be cut, held back or refused.

What must live here: bytes in, bytes out, and the faults of a network. What must not: who is connected with whom.
"""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from contextlib import suppress

_PIECE = 65536


def _reset(writer: StreamWriter) -> None:
    """Close at once, by a reset and not as an application does."""
    if not writer.transport.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


class Relay:
    """Listens on ``port`` of 127.0.0.1 and passes everything on to ``target``. All of it belongs to one event loop."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.passed = 0  # bytes, both ways
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._open: set[StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut everything and listen no more."""
        self._refusing = True
        self.cut()
        self._flowing.set()
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._open) // 2

    def cut(self) -> None:
        """Reset every connection there is."""
        for writer in self._open:
            _reset(writer)

    def refuse(self) -> None:
        """Cut, and reset every new connection as well until `restore`."""
        self._refusing = True
        self.cut()

    def hold(self) -> None:
        """A black hole until `restore`: connections stay and new ones begin, but nothing comes through any more."""
        self._flowing.clear()

    def restore(self, *, reset: bool = False) -> None:
        """All is well again. What was held back goes on its way; with ``reset`` it is lost, and the connections are."""
        self._refusing = False
        if reset:
            self.cut()
        self._flowing.set()

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        try:
            if self._refusing:
                return
            self._open.add(writer)
            await self._flowing.wait()
            behind, back = await asyncio.open_connection("127.0.0.1", self.target)
            ends.append(back)
            self._open.add(back)
            if writer.transport.is_closing():  # cut meanwhile
                return
            ways = [asyncio.ensure_future(self._pass(reader, back)), asyncio.ensure_future(self._pass(behind, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
        except (OSError, asyncio.CancelledError):
            pass  # nothing listens there now; or the relay is closed, and this is the task's end anyway
        finally:
            self._tasks.discard(task)
            for end in ends:
                self._open.discard(end)
                _reset(end)

    async def _pass(self, reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await self._flowing.wait()
                if writer.transport.is_closing():
                    return
                writer.write(piece)
                self.passed += len(piece)
                await writer.drain()
            await self._flowing.wait()
            # Half of a connection's end is the end of both here: neither PostgreSQL nor Redis closes one half.
            with suppress(RuntimeError):
                await writer.drain()
