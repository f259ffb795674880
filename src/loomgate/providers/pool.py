"""Slots for calls, and the connections that wait for their next request.

What must live here: how many connections there may be, who gets the next one, and how long an unused one is kept. What
must not: what goes over them (``http1``), or how they are made (``dial``).
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loomgate.providers.http1 import Connection


class Pool:
    """Slots, and unused connections that may serve again. ``limit`` bounds both together (0: no limit).

    A call has a slot from `enter` (or `queue`) to `leave`, and with it may take a `kept` connection or make one. A
    freed slot goes to whoever has waited longest, never past them.
    """

    def __init__(self, limit: int, keep_alive: float) -> None:
        self._limit = limit
        self._keep_alive = keep_alive
        self._used = 0
        self._queue: deque[asyncio.Future[bool]] = deque()
        self._kept: dict[object, dict[Connection, None]] = {}  # by key, the most recently used last
        self._ages: dict[Connection, None] = {}  # the same ones, all together, the longest unused first
        self.all: set[Connection] = set()  # every open connection

    def enter(self) -> bool:
        """Take a slot, if one is free."""
        if self._limit and self._used >= self._limit:
            return False
        self._used += 1
        return True

    async def queue(self) -> bool:
        """Take a slot as soon as one is free. False: the pool was closed."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                if waiter.result():
                    self.leave()  # the slot came in the same moment
            elif waiter in self._queue:
                self._queue.remove(waiter)
            raise

    def leave(self) -> None:
        """Give the slot back."""
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return
        self._used -= 1

    def kept(self, key: object, now: float) -> "Connection | None":
        """An unused connection for ``key`` that is still good, as of ``now``."""
        kept = self._kept.get(key)
        while kept:
            connection, _ = kept.popitem()
            del self._ages[connection]
            if not kept:
                del self._kept[key]
            if connection.expires > now and connection.transport is not None and not connection.transport.is_closing():
                return connection
            connection.abort()
        return None

    def keep(self, connection: "Connection", now: float) -> None:
        """Put a connection whose exchange is over aside for the next call."""
        connection.renew()
        connection.expires = now + self._keep_alive
        self._kept.setdefault(connection.key, {})[connection] = None
        self._ages[connection] = None

    def drop(self, connection: "Connection") -> None:
        """An unused connection is gone."""
        kept = self._kept.get(connection.key)
        if kept is not None and connection in kept:
            del kept[connection], self._ages[connection]
            if not kept:
                del self._kept[connection.key]

    def make_room(self) -> None:
        """Before a connection is made: close those longest unused until there is room for it."""
        while self._limit and self._ages and self._used + len(self._ages) > self._limit:
            self._close(next(iter(self._ages)))

    def sweep(self, now: float) -> float | None:
        """Close what has been unused for too long as of ``now``; when the next one will have been, if there is one."""
        for connection in tuple(self._ages):
            if connection.expires > now:
                return connection.expires
            self._close(connection)
        return None

    def close(self) -> None:
        """Break every connection and send away whoever waits for one."""
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(False)
        for connection in tuple(self._ages):
            self._close(connection)
        for connection in tuple(self.all):
            connection.abort()

    def _close(self, connection: "Connection") -> None:
        self.drop(connection)
        connection.abort()
