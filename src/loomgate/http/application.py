"""The ASGI application: from a matched route to an answer, with the headers that every answer has.

What must live here: the order of checks (BEHAVIOUR HDR-08), error rendering (section 9), response headers (HDR-20 to
HDR-22). What must not: anything about one resource. The hot path uses no request or response objects: `Call` is all.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.routing import Route, Router
from starlette.types import Lifespan, Receive, Scope, Send

from loomgate import clock
from loomgate.engine.service import Engine
from loomgate.errors import ApiError, StoreError, bad_request
from loomgate.gateway import Gateway
from loomgate.gateway.telemetry import Metrics
from loomgate.http import admin, query
from loomgate.http.auth import Auth, check_content_type
from loomgate.http.body import Left, read_body
from loomgate.http.call import Answer, Call, Handler, Streamed
from loomgate.http.faults import log_store_error, overloaded, server_error
from loomgate.http.gateway import GatewayRoutes, endpoint_of, names_upstream
from loomgate.http.metrics import metrics
from loomgate.http.naming import NOTHING
from loomgate.http.quota import Quota
from loomgate.http.realtime import Realtime
from loomgate.http.routes import ADMIN_ROUTES, LOG_ROUTES, PREFIXES, ROUTES, Dialect, Row
from loomgate.http.straight import Straight
from loomgate.http.stream import send_stream
from loomgate.settings import Settings
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.ids import new_request_id

log = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_VERSION = (b"openai-version", b"2020-10-01")
_NOBODY = "unknown"  # the organization of an answer to a caller who is not known


class Application:
    """Routes requests to handlers. ``engine``, ``auth``, ``metrics`` and ``quota`` are put in before the first request
    and after start-up; ``draining`` is set when the node is about to leave. Without ``api`` it answers probes alone.

    ``redis`` tells whether the Redis of the nodes answers, if they have one.
    """

    def __init__(self, settings: Settings, running: Lifespan[Any], *, api: bool = True) -> None:
        self.settings = settings
        self.api = api
        self.draining = False
        self.redis: Callable[[], bool] | None = None
        self.engine: Engine | None = None
        self.auth: Auth | None = None
        self.gateway: Gateway | None = None
        self.quota: Quota | None = None
        self._models = GatewayRoutes(self)
        self.straight = Straight(self, self._models)
        self._realtime = Realtime(self)
        self.metrics: Metrics | None = None
        routes = [
            Route(prefix + path, _Endpoint(self, dialect, methods))
            for prefix, dialect in PREFIXES
            for path, methods in _by_path(ROUTES).items()
        ]
        routes += [
            Route("/v1" + path, _Endpoint(self, "portkey", methods)) for path, methods in _by_path(LOG_ROUTES).items()
        ]
        routes += [
            Route("/v1" + path, _Endpoint(self, "portkey", methods, admin=True))
            for path, methods in _by_path(ADMIN_ROUTES).items()
        ]
        if not api:
            routes.clear()
        for path in ("/health", "/healthz"):
            routes.append(Route(path, _Health(self, ready=False)))
        for path in ("/ready", "/readyz"):
            routes.append(Route(path, _Health(self, ready=True)))
        routes.append(Route("/metrics", _Metrics(self)))
        nowhere = _Nowhere(_Endpoint(self, "openai", None), self._models if api else None)
        if api:
            routes.append(Route("/", _Hello()))
        self._router = Router(routes, redirect_slashes=False, default=nowhere, lifespan=running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self.quota is not None and scope["type"] != "lifespan":
            await self.quota.surround(self._answer, scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            if not self.api:
                await send({"type": "websocket.close"})
                return
            await self._realtime(scope, receive, send)
            return
        if scope["type"] == "http" and self.api:
            # Model calls take no way through the router, which would look at every path before theirs.
            found = endpoint_of(scope["path"], scope["headers"])
            if found is not None:
                await self._models(scope, receive, send, *found)
                return
        await self._router.app(scope, receive, send)


def _by_path(rows: list[Row]) -> dict[str, dict[str, Handler]]:
    found: dict[str, dict[str, Handler]] = {}
    for row in rows:
        found.setdefault(row.path, {})[row.method] = row.handler
    return found


class _Hello:
    """``GET /`` (GATEWAY RT-01): what Portkey's clients take for a sign of life."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """ASGI."""
        await _Reply(send).send(Answer(b"AI Gateway says hey!", headers=[(b"content-type", b"text/plain")]))


class _Nowhere:
    """A path that is not in the table: with an upstream named it is that one's (GATEWAY RT-06), else nobody's."""

    def __init__(self, missing: "_Endpoint", models: GatewayRoutes | None) -> None:
        self._missing = missing
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        path: str = scope["path"]
        if self._models is not None and path.startswith("/v1/") and names_upstream(scope["headers"]):
            await self._models(scope, receive, send, ENDPOINTS["proxy"], path[3:])
            return
        await self._missing(scope, receive, send)


class _Endpoint:
    """One path: its handlers by method; ``methods`` is ``None`` for every path that does not exist.

    ``admin``: only keys of that role are let in, and errors are told in both forms.
    """

    def __init__(
        self,
        application: Application,
        dialect: Dialect,
        methods: dict[str, Handler] | None,
        *,
        admin: bool = False,
    ) -> None:
        self._application = application
        self._dialect: Dialect = dialect
        self._admin = admin
        self._methods = methods
        verbs = {*(methods or {}), "OPTIONS"} | ({"HEAD"} if methods and "GET" in methods else set[str]())
        self._allow = ", ".join(sorted(verbs))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: answer one request, whatever happens."""
        reply = _Reply(send)
        try:
            answer = await self._answer(scope, receive, reply)
            if isinstance(answer, Streamed):
                if scope["method"] == "HEAD":
                    answer.subscription.close()
                    answer = Answer(b"")
                else:
                    keep_alive = self._application.settings.stream_keepalive_seconds
                    await send_stream(answer, reply.head(), receive, send, keep_alive)
                    return
        except ApiError as error:
            answer = _rendered(error, admin=self._admin)
        except StoreError as error:
            log_store_error(f"request {reply.request_id}", error)
            answer = _rendered(overloaded(), admin=self._admin)
        except Left:
            return
        except Exception:
            log.exception("request %s failed", reply.request_id)
            if reply.streaming:
                raise
            answer = _rendered(server_error(reply.request_id), admin=self._admin)
        await reply.send(answer)

    async def _answer(self, scope: Scope, receive: Receive, reply: "_Reply") -> Answer | Streamed:
        application = self._application
        method: str = scope["method"]
        if self._methods is None:
            # The path as it was sent, shortened: it is the client's own text in a JSON string.
            raise ApiError(404, f"Invalid URL ({method} {scope['path'][:300]})")
        if method == "OPTIONS":
            return Answer(b"", 204, [(b"allow", self._allow.encode())])
        handler = self._methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            raise ApiError(
                405,
                f"Method {method[:20]} is not allowed for {scope['path'][:300]}. Expected one of: {self._allow}.",
                headers={"allow": self._allow},
            )
        engine, auth = application.engine, application.auth
        if engine is None or auth is None:
            raise overloaded()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        trace = headers.get(b"x-portkey-trace-id")
        if trace is not None:
            reply.extra.append((b"x-portkey-trace-id", trace))
        caller = await auth.caller(
            scope, headers, azure=self._dialect.startswith("azure"), upstream=self._dialect != "portkey"
        )
        reply.organization = caller.workspace
        if (quota := application.quota) is not None:
            await quota.enter(scope, caller)
        raw_query: bytes = scope["query_string"]
        if caller.naming is not NOTHING:
            await engine.check(caller.workspace, caller.naming)
        _check_version(self._dialect, headers, scope, raw_query)
        body = b""
        if method in ("POST", "PUT"):
            body = await read_body(receive, headers, application.settings.max_body_bytes)
            if caller.keyless and body:
                check_content_type(headers)
        call = Call(engine, application.settings, caller, scope["path_params"], raw_query, headers, body)
        if self._admin:
            admin.check_admin(call)
        return await handler(call)


class _Reply:
    """The answer to one request: what all answers share, and whether it has begun."""

    __slots__ = ("_send", "_started", "extra", "organization", "request_id", "streaming")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = clock.monotonic()
        self.request_id = new_request_id()
        self.organization = _NOBODY
        self.extra: list[tuple[bytes, bytes]] = []
        self.streaming = False

    def head(self) -> list[tuple[bytes, bytes]]:
        """HDR-20, HDR-21."""
        self.streaming = True
        return [
            (b"x-request-id", self.request_id.encode()),
            _VERSION,
            (b"openai-processing-ms", b"%d" % ((clock.monotonic() - self._started) * 1000)),
            (b"openai-organization", self.organization.encode()),
            *self.extra,
        ]

    async def send(self, answer: Answer) -> None:
        """Send a whole answer."""
        head = self.head()
        if answer.status != 204:
            if not any(name == b"content-type" for name, _ in answer.headers):
                head.append(_JSON)
            head.append((b"content-length", b"%d" % len(answer.body)))
        head += answer.headers
        await self._send({"type": "http.response.start", "status": answer.status, "headers": head})
        await self._send({"type": "http.response.body", "body": answer.body})


_ANSWER_SECONDS = 2.0  # how long a probe waits for the database: those who ask are impatient


class _Health:
    """``/health``: the process answers. ``/ready``: it can also use its store, and is not about to leave. Neither asks
    who is calling."""

    def __init__(self, application: Application, *, ready: bool) -> None:
        self._application = application
        self._ready = ready

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["method"] not in ("GET", "HEAD"):
            allow = "GET, HEAD"
            answer = _rendered(
                ApiError(
                    405,
                    f"Method {scope['method'][:20]} is not allowed here. Expected one of: {allow}.",
                    headers={"allow": allow},
                )
            )
        elif self._ready:
            answer = await self._readiness()
        else:
            answer = Answer(b'{"status":"ok"}')
        await _Reply(send).send(answer)

    async def _readiness(self) -> Answer:
        application = self._application
        if application.draining:
            return _rendered(overloaded("This node is about to stop."))
        if not await self._usable():
            return _rendered(overloaded("This node cannot use its database."))
        told = {"status": "ok"}
        if application.redis is not None:
            told["redis"] = "ok" if application.redis() else "away"  # nodes do without, so it is no reason
        return Answer(msgspec.json.encode(told))

    async def _usable(self) -> bool:
        engine = self._application.engine
        if engine is None:
            return False
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await engine.store.keys.exist()
        except TimeoutError:
            log.warning("not ready: the store does not answer")
            return False
        except StoreError as error:
            log.warning("not ready: %s", error)
            return False
        return True


class _Metrics:
    """``/metrics`` (`loomgate.http.metrics`)."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """ASGI."""
        found, auth = self._application.metrics, self._application.auth
        try:
            if found is None or auth is None:
                answer = _rendered(overloaded())
            else:
                answer = await metrics(found, auth, scope)
        except ApiError as error:
            answer = _rendered(error)
        except StoreError as error:
            log_store_error("/metrics", error)
            answer = _rendered(overloaded())
        await _Reply(send).send(answer)


# --- checks before the handler ---------------------------------------------------------------------------------------


def _check_version(dialect: Dialect, headers: Mapping[bytes, bytes], scope: Scope, raw_query: bytes) -> None:
    """The beta header on ``/v1`` (HDR-01, -02, -05), ``api-version`` on ``/openai``."""
    given = headers.get(b"openai-beta")
    if given == b"assistants=v2":
        items = [given]
    else:
        # A header may come in several lines, each with several items; Portkey has a name of its own for it (RH-19).
        names = (b"openai-beta", b"x-portkey-openai-beta")
        items = [item.strip() for name, value in scope["headers"] if name in names for item in value.split(b",")]
    wanted = dialect == "openai" or (b"assistants=v1" in items and dialect != "portkey")
    if b"assistants=v2" not in items and wanted:
        if b"assistants=v1" in items:
            message = "The v1 Assistants API has been deprecated."
        else:
            message = "You must provide the 'OpenAI-Beta' header to access the Assistants API."
        raise bad_request(
            f"{message} Please try again by setting the header 'OpenAI-Beta: assistants=v2'.", code="invalid_beta"
        )
    if dialect == "azure" and not dict(query.pairs(raw_query)).get("api-version"):
        raise bad_request(
            "Missing required query parameter: 'api-version'. Expected for instance api-version=2024-05-01-preview.",
            "api-version",
            "missing_required_parameter",
        )


# --- errors ----------------------------------------------------------------------------------------------------------


def _rendered(error: ApiError, *, admin: bool = False) -> Answer:
    """ERR-01; for ``admin`` also as Portkey's control plane tells an error."""
    inner = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    shown: dict[str, Any] = {"error": inner}
    if admin:
        shown |= {"success": False, "data": {"message": error.message}}
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    return Answer(msgspec.json.encode(shown), error.status, headers)
