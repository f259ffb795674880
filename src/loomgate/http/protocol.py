"""How uvicorn's HTTP carries a short answer: its head and its body in one write.

What must live here: that, and nothing that uvicorn does as well. What must not: what is in an answer. uvicorn writes
the head as soon as it has it, so that a whole answer costs two system calls, and often its client two reads.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent

    from loomgate.http.straight import Client, Trip

_LONGEST = 256 * 1024  # bytes of a body that are worth copying behind their head
_NO_BODY = frozenset({204, 304})
# A message of ours beside ASGI's: the answer that has begun ends here, without its end, and so does the connection.
CUT: dict[str, Any] = {"type": "loomgate.response.cut"}
_last: set[asyncio.Task[None]] = set()  # whatever sends an answer to a client that reads slowly
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})


TARGET = b"/v1/chat/completions"  # of requests that may go straight, see `loomgate.http.straight`
# The ASGI extension by which an application sends a whole answer as one message: ``status``, ``headers`` with the
# length of the body, ``body``.
WHOLE = "loomgate.whole"
_EXTENSIONS: dict[str, dict[str, Any]] = {WHOLE: {}}


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    _head: dict[str, Any] | None = None

    async def receive(self) -> "ASGIReceiveEvent":
        """ASGI. What is there already is not waited for."""
        if self.message_event.is_set() and not (
            self.disconnected or self.response_complete or self.waiting_for_100_continue
        ):
            self.flow.resume_reading()
            self.message_event.clear()
            body, self.body = self.body, bytearray()
            return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}
        return await super().receive()

    async def send(self, message: "ASGISendEvent") -> None:
        """ASGI. The head of an answer that says its length waits for the body, which follows at once."""
        given = cast(dict[str, Any], message)
        if given is CUT:
            self.disconnected = True  # as if the client had left: nothing more is said, and nobody complains of that
            self.transport.close()
            return
        if given["type"] == WHOLE:
            whole = None
            if self._head is None and not self.response_started:
                whole = self._joined(given["status"], given["headers"], given["body"])
            if whole is not None:
                await self._finish(whole)
                return
            start = {"type": "http.response.start", "status": given["status"], "headers": given["headers"]}
            await self.send(cast("ASGISendEvent", start))
            message = cast("ASGISendEvent", {"type": "http.response.body", "body": given["body"]})
            given = cast(dict[str, Any], message)
        head = self._head
        if given["type"] == "http.response.start" and not self.response_started and _has_length(given["headers"]):
            self._head = given  # in place of one whose body failed: then this is uvicorn's 500
            return
        if head is not None:
            self._head = None
            whole = self._whole(head, given)
            if whole is not None:
                await self._finish(whole)
                return
            await super().send(cast("ASGISendEvent", head))
        await super().send(message)

    def _whole(self, head: dict[str, Any], message: dict[str, Any]) -> bytes | None:
        """Head and body as bytes; None for what is better left to uvicorn."""
        if message["type"] != "http.response.body" or message.get("more_body"):
            return None
        return self._joined(head["status"], head["headers"], message.get("body", b""))

    def _joined(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes | None:
        if len(body) > _LONGEST or status in _NO_BODY or self.scope["method"] == "HEAD":
            return None
        if self.default_headers:
            headers = [*self.default_headers, *headers]
        length = b"%d" % len(body)
        for name, value in headers:
            if name in _FRAMING and (name != b"content-length" or value != length):
                return None
        made = STATUS_LINE[status] + b"\r\n".join([b": ".join(pair) for pair in headers])
        lines = len(headers)
        if not self.keep_alive:
            made += b"\r\nconnection: close"
            lines += 1
        if made.count(b"\n") != lines or made.count(b"\r") != lines or b"\0" in made:
            return None  # a header that would be several: uvicorn refuses it
        return b"".join((made, b"\r\n\r\n", body))

    def whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer, its length among its ``headers``, from outside of any task."""
        made = None if self.flow.write_paused else self._joined(status, headers, body)
        if made is not None:
            self._sent(made)
            self.on_response = _nothing  # as uvicorn does: or else we and our connection hold on to each other
        else:
            message = {"type": WHOLE, "status": status, "headers": headers, "body": body}
            task = asyncio.get_running_loop().create_task(self.send(cast("ASGISendEvent", message)))
            _last.add(task)
            task.add_done_callback(_last.discard)

    async def _finish(self, whole: bytes) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        self._sent(whole)

    def _sent(self, whole: bytes) -> None:
        if self.disconnected:
            return
        self.waiting_for_100_continue = False
        self.response_started = self.response_complete = True
        self.transport.write(whole)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _nothing() -> None:
    return None


def _has_length(headers: list[tuple[bytes, bytes]]) -> bool:
    return b"content-length" in [name for name, _ in headers]


def websocket_protocol(**given: Any) -> asyncio.Protocol:
    """What carries a connection that becomes a WebSocket; its library is not there before the first one."""
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    return WebSocketsSansIOProtocol(**given)


_Place = tuple[str, bytes, bytes]
_places: dict[bytes, _Place] = {}  # of some targets of requests: path, path as sent, query
_MOST_PLACES = 1024
_LONGEST_PLACE = 256


def _place(target: bytes) -> _Place:
    url = httptools.parse_url(target)
    path = url.path.decode("ascii")
    if "%" in path:
        from urllib.parse import unquote

        path = unquote(path)
    place = (path, url.path, url.query or b"")
    if len(target) <= _LONGEST_PLACE:
        if len(_places) >= _MOST_PLACES:
            _places.clear()
        _places[target] = place
    return place


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with `Cycle` for its requests; without what our settings of it rule out.

    A connection has one timer for being unused, which looks at `_unused_since` when it comes: to make one after each
    answer and take it back at the next request would cost more than all else here.
    """

    _unused_since: float | None = None
    _held: Cycle | None = None  # a request that may go straight, once all of it is here
    straight_client: "Client | None" = None  # who made the last such request
    trip: "Trip | None" = None  # one that does

    def data_received(self, data: bytes) -> None:
        """As uvicorn does, and what may go straight is begun when all that came was read."""
        super().data_received(data)
        held = self._held
        if held is not None:
            app = cast(Any, self.app)  # pyright: ignore[reportUnknownMemberType] - loaded from anywhere
            # Many clients write a head and its body one after the other.
            if held.more_body and app.straight.waits(held):
                return
            self._held = None
            if held.more_body or not app.straight.take(self, held):
                self._start_asgi_task(held, app.straight.other(self))

    def begin(self, cycle: Cycle, app: Any) -> None:
        """Have ``app`` answer the request of ``cycle`` in a task."""
        self._start_asgi_task(cycle, app)

    def shutdown(self) -> None:
        """As uvicorn does; what is under way gets a task, since that is what uvicorn waits for."""
        if self.trip is not None:
            self.trip.begin()
        if self._held is not None:
            self._start_asgi_task(self._held, cast(Any, self.app))  # pyright: ignore[reportUnknownMemberType]
            self._held = None
        super().shutdown()

    def _unset_keepalive_if_required(self) -> None:
        self._unused_since = None

    def on_response_complete(self) -> None:
        """The next request, if it is there already; else the connection is unused from now on."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._unused_since = None
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self._unused_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been unused for too long, else look again when it may have been."""
        self.timeout_keep_alive_task = None
        since = self._unused_since
        if since is None or self.transport.is_closing():
            return
        left = since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn does, and the timer ends."""
        super().connection_lost(exc)
        self._held = None
        if self.trip is not None:
            self.trip.gone()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def on_headers_complete(self) -> None:
        """Begin to answer, or wait for the answer before."""
        parser, scope = cast(httptools.HttpRequestParser, self.parser), self.scope
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade() and self._should_upgrade():
            return  # `websocket_protocol` carries it from here
        scope["path"], scope["raw_path"], scope["query_string"] = _places.get(self.url) or _place(self.url)
        scope["extensions"] = cast(Any, _EXTENSIONS)
        before = cast("RequestResponseCycle | None", self.cycle)
        app = cast(Any, self.app)  # pyright: ignore[reportUnknownMemberType] - loaded from anywhere
        self.cycle = cycle = Cycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            self.access_log,
            self.server_state.default_headers,
            asyncio.Event(),
            self.expect_100_continue,
            version != "1.0" and parser.should_keep_alive(),
            self.on_response_complete,
        )
        if before is None or before.response_complete:
            if (
                self.url == TARGET
                and scope["method"] == "POST"
                and cycle.keep_alive
                and not self.expect_100_continue
                and hasattr(app, "straight")
            ):
                self._held = cycle
            else:
                self._start_asgi_task(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
