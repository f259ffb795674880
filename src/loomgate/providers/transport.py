"""The single HTTP door out: pooled connections, time-outs, limits.

What must live here: sending a request, handing out the answer's status, headers and body pieces, and saying in our
words how a connection failed. What must not: what the bytes mean, and trying a call again that an endpoint has seen.
The bytes of HTTP itself are in ``http1``, what lies between a URL and a connection in ``dial``, what waits for its next
request in ``pool``.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import quote

import msgspec

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.deadlines import Timeouts, Watch, closed
from loomgate.providers.dial import Dialer, Origin, origin_of
from loomgate.providers.dialect import HttpCall
from loomgate.providers.http1 import CLOSE, ENCODING, Connection, request_head
from loomgate.providers.inflate import Inflate
from loomgate.providers.pool import Pool

if TYPE_CHECKING:
    from loomgate.providers.websocket import WebSocket

# Origins that are remembered, their addresses taken apart; some come from clients.
_MOST_ORIGINS = 4096
_CODINGS = frozenset({b"gzip", b"x-gzip", b"deflate"})


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Connections in all (0: no limit), seconds an unused one is kept, and a PEM file of further authorities."""

    connections: int = 1000
    keep_alive: float = 30.0
    ca_file: str | None = None


class Reply:
    """An answer whose headers have come. Use it as an async context manager; leaving it gives the connection back,
    or closes it at once when the body was not read to its end.

    ``raw_headers`` are the headers as received, in order, names in lower case. ``whole`` is the complete body if it
    was there together with the headers, and None if there is more to wait for. A body that comes compressed although
    that was not asked for is decompressed, and ``raw_headers`` then lack what no longer holds.
    """

    __slots__ = (
        "_connection",
        "_got",
        "_headers",
        "_inflate",
        "_left",
        "_transport",
        "_watch",
        "raw_headers",
        "status",
        "whole",
    )

    def __init__(self, transport: "Transport", connection: Connection, watch: "Watch", *, inflate: bool) -> None:
        self._transport = transport
        self._watch = watch
        self._got = False
        self._headers: dict[str, str] | None = None
        self._inflate: Inflate | None = None
        self._connection: Connection | None = connection
        self._left: bytes | None = None
        self.status: int = connection.status
        self.raw_headers: list[tuple[bytes, bytes]] = connection.headers
        self.whole: bytes | None = None
        if inflate and connection.encoding in _CODINGS and (connection.parts or not connection.over):
            self._inflate = Inflate(connection.encoding)
            gone = (b"content-encoding", b"content-length")
            self.raw_headers = [header for header in self.raw_headers if header[0] not in gone]
        if connection.over:
            self._left = connection.take()
            self._release()
            if self._inflate is None:
                self.whole = self._left

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers, names in lower case; of repeated ones the last."""
        if self._headers is None:
            self._headers = {
                name.decode("latin-1"): value.decode("utf-8", "surrogateescape") for name, value in self.raw_headers
            }
        return self._headers

    async def piece(self) -> bytes:
        """The next bytes of the body as they come, ``b""`` at its end.

        While nobody asks, no more than some 300 KiB are read ahead. Raises `ProviderError` ``timeout``; ``cut`` when
        the body breaks off, or ``connect`` if nothing of it came; ``malformed`` when its compression is wrong.
        """
        inflate = self._inflate
        if inflate is None:
            return await self._piece()
        while not (data := inflate.more()):
            raw = await self._piece()
            if not raw:
                inflate.end()
                return b""
            inflate.feed(raw)
        return data

    async def read(self, limit: int) -> bytes:
        """The body, or its first ``limit`` bytes. Raises as `piece` does."""
        parts: list[bytes] = []
        size = 0
        while size < limit and (data := await self.piece()):
            parts.append(data)
            size += len(data)
        return b"".join(parts)[:limit]

    def hurry(self, timeouts: Timeouts) -> None:
        """Let ``timeouts`` hold from here on."""
        self._watch.timeouts = timeouts
        self._watch.end = min(self._watch.end, clock.now() + timeouts.total)

    def close(self) -> None:
        """Give the connection back, or close it if the answer is not over."""
        if self._connection is not None:
            self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _piece(self) -> bytes:
        connection = self._connection
        if connection is None:
            if self._left is None:
                raise ProviderError("cut", "The answer was closed before its end.")
            data, self._left = self._left, b""
            return data
        watch = self._watch
        now = clock.now()
        if now >= watch.end and not connection.over:  # a fast stream may never have to wait
            watch.due = watch.end
            raise watch.error()
        if not connection.parts:
            watch.begin("idle", watch.timeouts.idle, now)
            self._transport.watch(watch)
            while not (connection.parts or connection.over or connection.failure):
                if not await connection.wait():
                    raise watch.error()
        if connection.parts:
            self._got = True
            data = connection.take()
        elif connection.over:
            data = b""
        elif self._got:
            raise ProviderError("cut", "The connection to the endpoint broke within the answer.")
        else:
            raise ProviderError("connect", "The connection to the endpoint broke before the answer.")
        if connection.over and self._connection is connection:
            self._left = b""
            self._release()
        return data

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        self._transport.release(connection, self._watch)


class Line(NamedTuple):
    """What requests to one endpoint share that differ in nothing but their bodies, see `Transport.line`."""

    origin: Origin
    head: bytes  # all of it but the body's length


class Started:
    """A request on its way for which no task waits, see `Transport.start`. `settle` it, give it to `Transport.send`, or
    `leave` it."""

    __slots__ = ("_transport", "at", "connection", "over")

    def __init__(self, transport: "Transport", connection: Connection) -> None:
        self._transport = transport
        self.connection = connection
        self.at = clock.now()
        self.over = False  # whether it is somebody else's by now

    def settle(self) -> bytes:
        """The body of an answer that is over; its connection may serve again, and is not to be looked at any more."""
        connection = self.connection
        connection.listener = None
        self.over = True
        body = connection.take()
        self._transport.release(connection, None)
        return body

    def leave(self) -> None:
        """Nobody wants the answer; nothing happens if somebody has it."""
        if self.over:
            return
        connection = self.connection
        connection.listener = None
        self.over = True
        connection.abort()
        connection.pool.leave()


class Transport:
    """The HTTP client: one per process and event loop, shared by all calls, closed with `close`."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._pool: Pool | None = None
        self._dialer = Dialer(self._limits.ca_file)
        self._origins: tuple[dict[str, Origin], dict[str, Origin]] = ({}, {})  # any; public ones only
        self._watches: set[Watch] = set()
        self._sockets: set[WebSocket] = set()
        self._watchman: asyncio.Task[None] | None = None
        self._next_look = 0.0
        self._look = asyncio.Event()

    def line(self, call: HttpCall) -> Line | None:
        """What requests like ``call`` share; ``None`` when they need more than `start` does. Raises as `send` does."""
        origin, target = self._place(call.url, public_only=call.public_only)
        size = len(call.body)
        if not size:
            return None
        head, seen = request_head(call.method, target, origin.authority, call.headers, size, origin.more, origin.login)
        end = b"Content-Length: %d\r\n\r\n" % size
        return None if seen & (CLOSE | ENCODING) or not head.endswith(end) else Line(origin, head.removesuffix(end))

    def start(
        self, line: Line, body: bytes, listener: Callable[[], None], admit: Callable[[], bool] | None = None
    ) -> Started | None:
        """Send a request with ``body`` if a connection is there that may serve again and ``admit`` then says so, else
        ``None``.

        ``listener`` is called whenever more of the answer is there, from its headers on, and when it breaks off. No
        deadline holds until `send` takes over.
        """
        pool = self._pool
        if pool is None or not pool.enter():
            return None
        connection = pool.kept(line.origin.key, clock.now())
        if connection is None or (admit is not None and not admit()):
            if connection is not None:
                pool.keep(connection, clock.now())
            pool.leave()
            return None
        connection.listener = listener
        connection.begin(b"%bContent-Length: %d\r\n\r\n" % (line.head, len(body)), body)
        return Started(self, connection)

    async def send(self, call: HttpCall, timeouts: Timeouts, started: Started | None = None) -> Reply:
        """Send ``call`` and return once the answer's headers are there; redirects are answers like any other.

        ``started``: the same request is on its way already; only its answer is waited for.

        A kept connection that the other side has closed meanwhile is replaced by a fresh one, once. Raises
        `ProviderError` ``connect`` (no connection, a refused address, or it broke before an answer), ``timeout``,
        ``malformed`` (no HTTP) or ``invalid`` (a header that cannot be sent, by its name).
        """
        pool = self._pool or self._open()
        origin, target = self._place(call.url, public_only=call.public_only)
        body = call.body
        head, seen = request_head(
            call.method, target, origin.authority, call.headers, len(body), origin.more, origin.login
        )
        watch = Watch(timeouts)
        connection: Connection | None = None
        if started is not None:
            connection, entered, pool = started.connection, True, started.connection.pool
            connection.listener = None
            started.over = True
            watch.began(started.at)
        else:
            entered = pool.enter()
        try:
            if not entered:
                entered = await self._queue(pool, origin, watch)
            if connection is None:
                connection = pool.kept(origin.key, clock.now())
            kept = connection is not None
            while True:
                if connection is None:
                    connection = await self._dial(pool, origin, watch)
                watch.connection = connection
                if watch.phase != "first_byte":
                    watch.begin("first_byte", timeouts.first_byte, clock.now())
                self.watch(watch)
                if started is None:
                    connection.begin(head, body, bodiless=call.method == "HEAD")
                started = None
                while not (connection.status or connection.failure):
                    if not await connection.wait():
                        raise watch.error()
                if connection.status:
                    break
                if connection.failure == "malformed":
                    raise ProviderError("malformed", f"{origin.host} did not answer in HTTP.")
                if not kept or connection.touched:
                    raise ProviderError("connect", "The endpoint closed the connection without an answer.")
                connection.abort()
                connection, kept, watch.connection = None, False, None
            if seen & CLOSE:
                connection.spoiled = True  # for anybody else: the other side may close it any time
            return Reply(self, connection, watch, inflate=not seen & ENCODING)
        except BaseException:
            self._watches.discard(watch)
            if connection is not None:
                connection.abort()
            if entered:
                pool.leave()
            raise

    async def websocket(
        self, url: str, headers: dict[str, str], timeouts: Timeouts, *, public_only: bool = False
    ) -> "WebSocket":
        """Open a WebSocket at a ``ws`` or ``wss`` address; it counts as a connection until it is closed.

        Subprotocols are offered by the header ``Sec-WebSocket-Protocol``. Of the ``timeouts``, ``first_byte`` holds for
        the handshake, ``idle`` for how long nothing at all may come. Raises `ProviderError` as `send` does, and with
        the ``status`` of an answer that refuses, its message being the start of that answer's body.
        """
        from loomgate.providers.websocket import WebSocket

        if not url.lower().startswith(("ws://", "wss://")):
            raise ProviderError("connect", "The address of the endpoint is not a ws or wss URL.")
        pool = self._pool or self._open()
        origin, target = self._place("http" + url[2:], public_only=public_only)
        watch = Watch(timeouts)
        connection: Connection | None = None
        socket: WebSocket | None = None
        entered = pool.enter()
        try:
            if not entered:
                entered = await self._queue(pool, origin, watch)
            connection = await self._dial(pool, origin, watch, tunnel=True)
            socket = WebSocket(self, connection, origin, watch)
            self._sockets.add(socket)
            watch.connection = socket
            watch.begin("first_byte", timeouts.first_byte, clock.now())
            self.watch(watch)
            await socket.open(target.removeprefix(origin.prefix), headers)
        except BaseException:
            if socket is not None:
                socket.end()
            else:
                self._watches.discard(watch)
                if connection is not None:
                    connection.abort()
                if entered:
                    pool.leave()
            raise
        return socket

    def forget(self, socket: "WebSocket", connection: Connection, watch: Watch) -> None:
        """A WebSocket is closed (for `WebSocket`)."""
        self._sockets.discard(socket)
        self._watches.discard(watch)
        connection.pool.leave()

    async def close(self) -> None:
        """Close every connection. Calls under way break."""
        if self._watchman is not None:
            self._watchman.cancel()
            self._watchman = None
        for socket in tuple(self._sockets):
            socket.end()
        pool, self._pool = self._pool, None
        if pool is not None:
            for watch in tuple(self._watches):
                watch.stop()
            pool.close()
            await asyncio.sleep(0)  # the event loop closes the sockets

    def watch(self, watch: Watch) -> None:
        """See to it that ``watch`` fires when it is due (for `Reply`).

        One task looks after all calls, asleep until the earliest deadline: a timer a piece would cost more than
        the piece.
        """
        self._watches.add(watch)
        if self._watchman is None or watch.due < self._next_look:
            self._call(watch.due)

    def release(self, connection: Connection, watch: Watch | None) -> None:
        """The call is over: keep its connection if that is possible, close it if not (for `Reply`, `Started`)."""
        if watch is not None:
            self._watches.discard(watch)
        pool = connection.pool
        if pool is self._pool and connection.reusable:
            pool.keep(connection, clock.now())
            if self._watchman is None or connection.expires < self._next_look:
                self._call(connection.expires)
        else:
            connection.abort()
        pool.leave()

    # --- on the way to a connection ---

    def _open(self) -> Pool:
        self._pool = Pool(self._limits.connections, self._limits.keep_alive)
        return self._pool

    def _place(self, url: str, *, public_only: bool) -> tuple[Origin, str]:
        """The origin of ``url``, and the target of a request there. Raises `ProviderError` ``connect``."""
        cut = url.find("/", 8)
        known = self._origins[public_only]
        origin = known.get(url[:cut]) if cut > 0 else None
        if origin is None:
            # What goes before the path ends where the path, the query or the fragment begins.
            cut = min((at for at in (url.find(mark, 8) for mark in "/?#") if at > 0), default=len(url))
            origin = origin_of(url[:cut], public_only=public_only)
            if len(known) >= _MOST_ORIGINS:
                known.clear()
            known[url[:cut]] = origin
        target = url[cut:]
        if "#" in target:
            target = target.partition("#")[0]
        if not target.startswith("/"):
            target = "/" + target
        if not (target.isascii() and target.isprintable() and " " not in target):
            if any(ord(char) < 0x20 or ord(char) == 0x7F for char in target):
                raise ProviderError("connect", "The address of the endpoint has a line break or the like in its path.")
            target = quote(target, safe="%/?:@!$&'()*+,;=[]-._~\"<>\\^`{|}", errors="surrogateescape")
        return origin, origin.prefix + target

    async def _queue(self, pool: Pool, origin: Origin, watch: Watch) -> bool:
        """Wait for a slot; True when it is ours."""
        watch.begin("connect", watch.timeouts.connect, clock.now())
        self.watch(watch)
        try:
            async with watch.scope():
                granted = await pool.queue()
        except TimeoutError:
            raise watch.error(origin.host) from None
        if not granted:
            raise closed()
        return True

    async def _dial(self, pool: Pool, origin: Origin, watch: Watch, *, tunnel: bool = False) -> Connection:
        pool.make_room()
        if watch.phase != "connect":  # waiting for a slot counts, too
            watch.begin("connect", watch.timeouts.connect, clock.now())
            self.watch(watch)
        try:
            async with watch.scope():
                connection = await self._dialer.connect(origin, pool, tunnel=tunnel)
        except TimeoutError:
            raise watch.error(origin.host) from None
        if pool is not self._pool:
            connection.abort()
            raise closed()
        return connection

    # --- deadlines ---

    def _call(self, when: float) -> None:
        """Have the watchman look at ``when``."""
        self._next_look = when
        if self._watchman is None or self._watchman.done():
            self._watchman = asyncio.get_running_loop().create_task(self._keep_watch())
        else:
            self._look.set()

    async def _keep_watch(self) -> None:
        while (seconds := self._look_around(clock.now())) > 0:
            self._look.clear()
            await clock.wait(self._look, seconds)
        self._watchman = None

    def _look_around(self, now: float) -> float:
        """Fire what is due; seconds until the next look, or 0 when there is nothing to look after."""
        for watch in tuple(self._watches):
            if watch.due <= now:
                watch.fire()
        dues = [watch.due for watch in self._watches if watch.due > now]
        if self._pool is not None and (expires := self._pool.sweep(now)) is not None:
            dues.append(expires)
        # One that has fired is looked after until its call has seen it.
        self._next_look = min(dues, default=now + 1.0)
        return self._next_look - now if dues or self._watches else 0.0
