"""A connection of messages (RFC 6455): what realtime endpoints speak.

What must live here: the opening handshake, messages in and out, and the close. What must not: where the connection
comes from (``dial``), which deadlines there are (``transport``), and what a message means.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake
from websockets.frames import EXTERNAL_CLOSE_CODES, CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.dial import Origin
from loomgate.providers.failure import masked, retry_after, status_kind
from loomgate.providers.http1 import HIGH_WATER, Connection, request_head

if TYPE_CHECKING:
    from loomgate.providers.deadlines import Watch
    from loomgate.providers.transport import Transport

LONGEST_MESSAGE = 16 * 1024 * 1024
_LONGEST_REASON = 123  # bytes, by the RFC
_LONGEST_ERROR = 2000
_PATIENCE = 5.0  # seconds for the other side's part of a close


class WebSocket(asyncio.Protocol):
    """An open WebSocket, of `Transport.websocket`. One task may `recv` while others `send`; `close` it at the end.

    ``subprotocol`` is the one that the endpoint chose. ``close_code`` and ``close_reason`` are the endpoint's once it
    has closed (1005: it gave none; 1006: the connection broke), and None before.
    """

    def __init__(self, owner: "Transport", connection: Connection, origin: Origin, watch: "Watch") -> None:
        assert connection.transport is not None
        self._owner = owner
        self._origin = origin
        self._watch = watch
        self._connection = connection
        self._stream = connection.transport
        self._protocol: ClientProtocol | None = None
        self._response: Response | None = None
        self._messages: deque[tuple[str | bytes, int]] = deque()
        self._held = 0
        self._parts: list[bytes] = []
        self._text = False
        self._waiters: set[asyncio.Future[bool]] = set()
        self._full = False
        self._paused = False
        self._eof = False
        self._touched = False
        self._lost = False
        self._ended = False
        self.subprotocol: str | None = None
        # From here on the bytes are ours; the connection has not been used.
        connection.pool.all.discard(connection)
        self._stream.set_protocol(self)
        if connection.lost or connection.touched:
            self._lost = True

    @property
    def close_code(self) -> int | None:  # noqa: D102 - said above
        received = self._protocol.close_rcvd if self._protocol is not None else None
        if received is not None:
            return received.code
        return CloseCode.ABNORMAL_CLOSURE if self._lost or self._ended else None

    @property
    def close_reason(self) -> str | None:  # noqa: D102 - said above
        received = self._protocol.close_rcvd if self._protocol is not None else None
        if received is not None:
            return received.reason
        return "" if self._lost or self._ended else None

    async def open(self, target: str, headers: Mapping[str, str]) -> None:
        """The opening handshake (for `Transport`). Raises `ProviderError`, with the ``status`` of an answer that
        refuses and the start of its body."""
        plain = {name: value for name, value in headers.items() if name.lower() != "sec-websocket-protocol"}
        wanted = [value for name, value in headers.items() if name.lower() == "sec-websocket-protocol"]
        request_head("GET", target, self._origin.authority, headers, 0)  # for what it refuses
        for name in plain:
            if name.lower().startswith("sec-websocket-") or name.lower() == "connection":
                raise ProviderError("invalid", f"The header {name!r} cannot be set by a caller.")
        path, _, query = target.partition("?")
        origin = self._origin
        address = WebSocketURI(origin.scheme == "https", origin.host, origin.port, path, query)
        offered = [Subprotocol(one.strip()) for one in ",".join(wanted).split(",") if one.strip()]
        protocol = ClientProtocol(address, subprotocols=offered or None, max_size=LONGEST_MESSAGE)
        self._protocol = protocol
        request = protocol.connect()
        _add(request.headers, {"User-Agent": "loomgate"})
        if origin.login:
            _add(request.headers, {"Authorization": origin.login.partition(": ")[2].strip()})
        _add(request.headers, plain)
        protocol.send_request(request)
        self._flush()
        while self._response is None and protocol.handshake_exc is None and not self._lost:
            if not await self._wait():
                raise self._watch.error()
        response, refusal = self._response, protocol.handshake_exc
        if response is not None and refusal is None:
            self.subprotocol = protocol.subprotocol
            return
        if response is not None and response.status_code != 101:
            body = bytes(response.body or b"")[:_LONGEST_ERROR].decode("utf-8", "replace")
            given = {name.lower(): value for name, value in response.headers.raw_items()}
            status = response.status_code
            said = masked(body) or f"The endpoint refused the WebSocket (HTTP {status})."
            raise ProviderError(status_kind(status), said, status=status, retry_after=retry_after(given))
        if self._touched and isinstance(refusal, InvalidHandshake):
            raise ProviderError("malformed", f"{origin.host} did not answer as a WebSocket: {type(refusal).__name__}")
        raise ProviderError("connect", "The endpoint closed the connection without an answer.")

    async def send(self, message: str | bytes) -> None:
        """Send a text or binary message; returns once the connection takes more.

        Raises `ProviderError` ``cut`` when it is closed, ``timeout`` when the other side takes nothing.
        """
        protocol = self._protocol
        if protocol is None or self._lost or self._ended or protocol.state is not OPEN:
            raise ProviderError("cut", "The WebSocket is closed.")
        if isinstance(message, str):
            protocol.send_text(message.encode("utf-8", "replace"))
        else:
            protocol.send_binary(message)
        self._flush()
        while self._full and not (self._lost or self._ended):
            self._patience()
            if not await self._wait():
                raise self._watch.error()

    def ping(self) -> None:
        """Ask the other side for a sign of life, which counts as one for the ``idle`` deadline."""
        protocol = self._protocol
        if protocol is not None and not self._lost and not self._ended and protocol.state is OPEN and not self._full:
            protocol.send_ping(b"")
            self._flush()

    async def recv(self) -> str | bytes | None:
        """The next message; None when the connection is closed. Raises `ProviderError` ``timeout``."""
        watch = self._watch
        if clock.now() >= watch.end:
            watch.due = watch.end
            raise watch.error()
        while not self._messages:
            if self._lost or self._ended or self.close_code is not None:
                return None
            self._patience()
            if not await self._wait():
                raise watch.error()
        message, size = self._messages.popleft()
        self._held -= size
        if self._paused and self._held < HIGH_WATER:
            self._resume()
        return message

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close with ``code`` and ``reason`` and wait some seconds for the other side's part.

        A code that must not go over the wire (1005, 1006, …) goes as 1000; a reason is cut to what fits.
        """
        protocol = self._protocol
        try:
            if protocol is None or self._lost or self._ended:
                return
            if protocol.state is OPEN:
                sendable = code in EXTERNAL_CLOSE_CODES or 3000 <= code < 5000
                short = reason.encode("utf-8", "replace")[:_LONGEST_REASON].decode("utf-8", "ignore")
                protocol.send_close(code if sendable else CloseCode.NORMAL_CLOSURE, short)
                self._flush()
            self._watch.begin("idle", _PATIENCE, clock.now())
            self._owner.watch(self._watch)
            while not (self._lost or self._ended):
                self._messages.clear()  # nobody will read them
                self._held = 0
                if self._paused:
                    self._resume()
                if not await self._wait():
                    return
        finally:
            self.end()

    def end(self) -> None:
        """Break it at once."""
        if not self._ended:
            self._ended = True
            self._stream.abort()
            self._owner.forget(self, self._connection, self._watch)
            self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def expire(self) -> None:
        """A deadline has come: whoever waits is told."""
        self._wake(happened=False)

    # --- of the event loop ---

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._touched = True
        if self._protocol is not None and not self._eof:
            self._protocol.receive_data(data)
            self._after()

    def eof_received(self) -> None:  # noqa: D102
        if self._protocol is not None and not self._eof:
            self._eof = True
            self._protocol.receive_eof()
            self._after()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self.eof_received()
        self._lost = True
        self._full = False
        self._wake()

    def pause_writing(self) -> None:  # noqa: D102
        self._full = True

    def resume_writing(self) -> None:  # noqa: D102
        self._full = False
        self._wake()

    def _after(self) -> None:
        assert self._protocol is not None
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._response = event
            elif isinstance(event, Frame):
                self._frame(event)
        if self._held >= HIGH_WATER and not self._paused and not self._stream.is_closing():
            self._paused = True
            self._stream.pause_reading()
        self._flush()
        self._wake()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text = frame.opcode is Opcode.TEXT
            self._parts = []
        elif frame.opcode is not Opcode.CONT:
            return  # pings are answered by the protocol, and closes are seen in its state
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        data = b"".join(self._parts)
        self._parts = []
        try:
            self._messages.append((data.decode() if self._text else data, len(data) + 1))
        except UnicodeDecodeError:
            assert self._protocol is not None
            self._protocol.fail(CloseCode.INVALID_DATA, "not UTF-8")
        else:
            self._held += len(data) + 1

    def _flush(self) -> None:
        assert self._protocol is not None
        for data in self._protocol.data_to_send():
            if self._lost or self._stream.is_closing():
                return
            if data:
                self._stream.write(data)
            else:
                self._stream.close()

    def _resume(self) -> None:
        self._paused = False
        if not self._lost and not self._stream.is_closing():
            self._stream.resume_reading()

    # --- waiting ---

    def _patience(self) -> None:
        self._watch.begin("idle", self._watch.timeouts.idle, clock.now())
        self._owner.watch(self._watch)

    async def _wait(self) -> bool:
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self, *, happened: bool = True) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(happened)


def _add(headers: Headers, more: Mapping[str, str]) -> None:
    for name, value in more.items():
        if name in headers:
            del headers[name]
        headers[name] = value
