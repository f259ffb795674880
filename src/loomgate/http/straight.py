"""The straight way of a request in: chats whose client, key and way are those of the request before on its connection.

What must live here: what a connection remembers of its client, and what an answer needs to go out that no task carries.
What must not: another reading of a request, or another answer, than `GatewayRoutes` would give: it reads the first
request of every client, and goes on with whatever does not come at once.
"""

import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from loomgate.errors import ApiError, StoreError
from loomgate.gateway.call import Answer, Request
from loomgate.gateway.straight import Passing, Way
from loomgate.http.auth import Auth, Known
from loomgate.http.gateway import GatewayRoutes, Patience, answer_headers
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.ids import new_request_id

if TYPE_CHECKING:
    from loomgate.http.application import Application
    from loomgate.http.protocol import Cycle, Protocol

log = logging.getLogger(__name__)

_CHAT = ENDPOINTS["chat"]
_LENGTH = b"content-length"
_MOMENT = 2.0  # seconds after which a task looks after a request at the latest: less than any time-out here
_SHORT = 32 * 1024  # bytes of a body
_Headers = list[tuple[bytes, bytes]]


class Client:
    """What one client says with every request, and what that means until something is changed."""

    __slots__ = ("_headers", "_length", "_text", "auth", "key", "request", "way")

    def __init__(self, headers: _Headers) -> None:
        self._headers = headers
        self._length = next((at for at, (name, _) in enumerate(headers) if name == _LENGTH), -1)
        self._text: dict[str, str] = {}
        self.auth: Auth | None = None
        self.key: Known | None = None
        self.way: Way | None = None  # None: not a straight one
        self.request: Request | None = None  # the first one

    def says(self, headers: _Headers) -> bool:
        """Whether ``headers`` are the same but for the length of the body."""
        own = self._headers
        if headers == own:
            return True
        at = self._length
        if len(headers) != len(own) or at < 0 or headers[at][0] != _LENGTH:
            return False
        return headers[:at] == own[:at] and headers[at + 1 :] == own[at + 1 :]

    def asks(self, headers: _Headers, body: bytes) -> Request:
        """Its request with ``body``."""
        first = self.request
        assert first is not None
        text = first.headers
        if headers is not self._headers and headers[self._length] != self._headers[self._length]:
            text = {**text, "content-length": headers[self._length][1].decode("latin-1")}
        return Request(
            _CHAT,
            first.naming,
            first.workspace,
            path=first.path,
            headers=text,
            content_type=first.content_type,
            body=body,
        )


class Straight:
    """Takes requests from their connections. One per application."""

    def __init__(self, application: "Application", routes: GatewayRoutes) -> None:
        self._application = application
        self.routes = routes
        self.patience = Patience(_MOMENT)

    def waits(self, cycle: "Cycle") -> bool:
        """Whether the rest of the body of ``cycle`` is worth waiting for: it is short and will not be refused."""
        most = min(_SHORT, self._application.settings.max_body_bytes)
        for name, value in cycle.scope["headers"]:
            if name == _LENGTH:
                return len(value) < 10 and int(value) <= most
        return False

    def take(self, protocol: "Protocol", cycle: "Cycle") -> bool:
        """Begin to answer the request of ``cycle``, all of which is here; False if that needs a task."""
        if self._application.quota is not None:
            return False  # its limits are asked for on the other way
        client, auth, gateway = protocol.straight_client, self._application.auth, self._application.gateway
        if client is None or gateway is None or auth is None or client.way is None or client.auth is not auth:
            return False
        headers: _Headers = cycle.scope["headers"]  # pyright: ignore[reportAssignmentType] - a list, as we made it
        if not client.says(headers) or not auth.holds(client.key) or not gateway.straight.holds(client.way):
            return False
        if len(cycle.body) > self._application.settings.max_body_bytes:
            return False
        trip = Trip(self, protocol, cycle, client.asks(headers, bytes(cycle.body)))
        if not gateway.straight.begin(client.way, trip):
            return False
        protocol.trip = trip
        self.patience.add(trip)
        return True

    def other(self, protocol: "Protocol") -> ASGIApp:
        """Answers a request that is not taken, in a task, after which one like it may be."""
        if self._application.quota is not None:
            return self._application  # which sees the request's end

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = await self.routes(scope, receive, send, _CHAT, _CHAT.path)
            if request is not None:
                with contextlib.suppress(ApiError, StoreError):  # for the next request to tell
                    await self._learn(protocol, scope, request)

        return app

    async def _learn(self, protocol: "Protocol", scope: Scope, request: Request) -> None:
        client, auth, gateway = protocol.straight_client, self._application.auth, self._application.gateway
        if gateway is None or auth is None:
            return
        headers: _Headers = scope["headers"]
        if client is None or not client.says(headers) or client.auth is not auth:
            client = Client(headers)
        elif client.way is not None and auth.holds(client.key) and gateway.straight.holds(client.way):
            await gateway.straight.learn(client.way, request)
            return
        client.auth, client.request, client.key = auth, request, auth.known(dict(headers))
        client.way = None if client.key is None else await gateway.straight_way(request)
        if client.way is not None:
            await gateway.straight.learn(client.way, request)
        protocol.straight_client = client


class Trip(Passing):
    """A request under way, and the connection that waits for its answer."""

    __slots__ = ("_cycle", "_protocol", "_straight")

    def __init__(self, straight: Straight, protocol: "Protocol", cycle: "Cycle", request: Request) -> None:
        super().__init__(request)
        self._straight = straight
        self._protocol = protocol
        self._cycle = cycle

    def ended(self, answer: Answer | None) -> None:
        """Send ``answer``, or let a task go on."""
        try:
            if answer is None:
                self.begin()
                return
            self._over()
            body = answer.body or b""
            head = [(b"x-request-id", new_request_id().encode()), *answer_headers(answer)]
            head.append((_LENGTH, b"%d" % len(body)))
            self._cycle.whole(answer.status, head, body)
        except Exception:
            # We are in a callback of the connection to the endpoint, which has nothing to do with this.
            log.exception("an answer could not be sent")
            self._protocol.transport.close()

    def begin(self) -> None:
        """It takes its time: from here on a task waits for it, which may be cancelled like any other."""
        self._over()
        self.request.ahead = self
        self._protocol.begin(self._cycle, partial(_go_on, self._straight.routes, self.request))

    def gone(self) -> None:
        """The client has left."""
        self._over()
        self.leave()
        self.record.abandon()

    def _over(self) -> None:
        self._protocol.trip = None
        self._straight.patience.remove(self)


async def _go_on(routes: GatewayRoutes, request: Request, scope: Scope, receive: Any, send: Any) -> None:
    try:
        await routes(scope, receive, send, _CHAT, _CHAT.path, request)
    finally:
        if request.ahead is not None:
            request.ahead.leave()
            request.ahead = None
