"""The gateway's routes: any model vendor's API below ``/v1``, answered by `Gateway.call` (GATEWAY sections 1, 4, 5).

What must live here: which path is which endpoint, the headers of an answer, and the form of an error. What must not:
which way a request goes. These are plain ASGI callables: no router, no request objects on the way of a model call.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import quote

import msgspec
from starlette.types import Receive, Scope, Send

from loomgate.errors import ApiError, ProviderError, StoreError, bad_request
from loomgate.gateway.batches import output as batch_output
from loomgate.gateway.batches import wants_output
from loomgate.gateway.call import Answer, Request
from loomgate.gateway.fronts.errors import refusal_body
from loomgate.gateway.meter import LEFT
from loomgate.http.auth import Auth, check_content_type
from loomgate.http.body import Arriving, Left, arriving, read_body
from loomgate.http.faults import log_store_error, overloaded, server_error
from loomgate.http.protocol import CUT, WHOLE
from loomgate.wire.endpoints import ENDPOINTS, Endpoint
from loomgate.wire.ids import new_request_id

if TYPE_CHECKING:
    from loomgate.http.application import Application

log = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_COMPLIANT = frozenset({"application/json", "multipart/form-data"})
_JSON = (b"content-type", b"application/json")

# Exact paths -> endpoint; then what has ids below it.
_EXACT: dict[str, Endpoint] = {
    "/v1" + row.path: row for row in ENDPOINTS.values() if row.path and not row.path.endswith("/")
}
_PREFIXES: tuple[tuple[str, Endpoint], ...] = (
    ("/v1/models/", ENDPOINTS["models"]),
    ("/v1/responses/", ENDPOINTS["responses"]),
    ("/v1/files/", ENDPOINTS["files"]),
    ("/v1/batches/", ENDPOINTS["batches"]),
    ("/v1/fine_tuning/", ENDPOINTS["fine_tuning"]),
)
_PROXY = "/v1/proxy/"
_MOMENT = 0.1  # seconds after which a client that waits may have gone
_PROMPTS = "/prompts/"
_AZURE = "/openai/"
_DEPLOYMENT = "/openai/deployments/"
_MANY_METHODS = frozenset({"models", "files", "batches", "fine_tuning", "responses", "realtime", "proxy"})
_NAMES = frozenset({b"x-portkey-provider", b"x-portkey-virtual-key", b"x-portkey-config", b"x-portkey-custom-host"})


def names_upstream(headers: list[tuple[bytes, bytes]]) -> bool:
    """Does a request with ``headers`` say which upstream it is for?"""
    return any(name in _NAMES for name, _ in headers)


def endpoint_of(path: str, headers: list[tuple[bytes, bytes]]) -> tuple[Endpoint, str] | None:
    """The endpoint of a path that is the gateway's, and the path that goes upstream. Files are ours unless named."""
    found = _EXACT.get(path)
    if found is None:
        if path.startswith(_AZURE):
            return _at_azure(path)
        if path.startswith("/v1" + _PROMPTS):
            return ENDPOINTS["proxy"], path[3:]
        if path.startswith(_PROXY):
            return ENDPOINTS["proxy"], path[len(_PROXY) - 1 :]
        found = next((endpoint for prefix, endpoint in _PREFIXES if path.startswith(prefix)), None)
    if found is None or (found.name == "files" and not names_upstream(headers)):
        return None
    return found, path[3:]


class GatewayRoutes:
    """ASGI for every path of the gateway."""

    def __init__(self, application: "Application") -> None:
        self._application = application
        self._patience = Patience(_MOMENT)

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint, path: str, request: Request | None = None
    ) -> Request | None:
        """Answer one request, whatever happens, and return it if its answer was a whole 200; ``request`` if it was read
        already."""
        request_id = new_request_id()
        head = [(b"x-request-id", request_id.encode())]
        started = False
        leaving: _Leaving | None = None
        answer: Answer | None = None
        try:
            gateway, auth = self._application.gateway, self._application.auth
            if gateway is None or auth is None:
                raise overloaded()
            if request is None:
                request = await self.read(auth, scope, receive, endpoint, path)
            if request.source is None:  # else the body is still on its way, and who reads it sees the client leave
                leaving = _Leaving(receive, self._patience)
            if wants_output(request):
                answer = await batch_output(request, gateway.call)
            else:
                answer = await gateway.call(request)
            head += answer_headers(answer)
            if answer.stream is None:
                await _send_whole(send, scope, answer.status, head, answer.body or b"")
                return request if answer.status == 200 else None
            started = True
            if leaving is not None:
                leaving.begin()
            await _send_stream(send, answer.status, head, answer.stream)
        except ApiError as error:
            await _send_refusal(send, scope, head, error, endpoint)
        except StoreError as failure:
            log_store_error(f"request {request_id}", failure)
            error = overloaded()
            await _send_refusal(send, scope, head, error, endpoint)
        except Left:
            return None
        except asyncio.CancelledError:
            # Nobody waits for this task but the server that carries it, which would log the cancellation as an error.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            if leaving is not None and leaving.gone:
                return None
            log.warning("request %s: the server stops before its answer is whole", request_id)
            if started:
                await send(CUT)
                return None
            error = overloaded()
            await _send_refusal(send, scope, head, error, endpoint)
        except Exception:
            log.exception("request %s failed", request_id)
            if started:
                raise
            error = server_error(request_id)
            head.append((b"x-portkey-gateway-exception", b"true"))
            await _send_refusal(send, scope, head, error, endpoint)
        finally:
            if leaving is not None:
                leaving.end()
            if answer is not None and answer.stream is not None:
                await answer.close()
        return None

    async def read(self, auth: Auth, scope: Scope, receive: Receive, endpoint: Endpoint, path: str) -> Request:
        """The request, if it may be made. Raises `ApiError`, `StoreError` and `Left`."""
        method: str = scope["method"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        azure: bool = scope["path"].startswith(_AZURE)
        caller = await auth.caller(scope, headers, azure=azure)
        if (quota := self._application.quota) is not None:
            await quota.enter(scope, caller)
        if path.startswith(_PROMPTS):
            raise ApiError(
                404,
                "Prompts are not offered here: send the finished messages to /v1/chat/completions.",
                code="unsupported_endpoint",
            )  # RT-08
        if method != "POST" and endpoint.name not in _MANY_METHODS:
            raise ApiError(405, f"Method {method[:20]} is not allowed here. Expected POST.", headers={"allow": "POST"})
        if endpoint.name == "realtime":
            raise ApiError(
                426, "Expected a WebSocket: send the headers of its handshake.", headers={"upgrade": "websocket"}
            )
        body = b""
        source: Arriving | None = None
        content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if method in ("POST", "PUT", "PATCH"):
            settings = self._application.settings
            if endpoint.name == "files" and content_type == "multipart/form-data":
                source = arriving(receive, headers, settings.max_body_bytes, settings.max_upload_bytes)
            if source is None:
                body = await read_body(receive, headers, settings.max_body_bytes)
            known = content_type in _COMPLIANT or content_type.startswith("audio") or not content_type
            if body and endpoint.mapped and not known:
                raise bad_request("Invalid content type passed", code="invalid_content_type")  # VAL-01
            if caller.keyless and body and content_type != "multipart/form-data":
                check_content_type(headers)
        query: bytes = scope["query_string"]
        if azure:
            query, body = _from_azure(scope["path"], query, body)
        made = Request(
            endpoint,
            caller.naming,
            caller.workspace,
            method=method,
            path=_as_sent(scope, path),
            query=query.decode("latin-1"),
            headers={
                name.decode("latin-1"): value.decode("utf-8", "surrogateescape") for name, value in headers.items()
            },
            content_type=content_type or ("application/json" if body[:1] == b"{" else ""),
            body=body,
        )
        made.source = source
        return made


def _at_azure(path: str) -> tuple[Endpoint, str] | None:
    """The endpoint of a path as clients of Azure have it, of a deployment or without versions; or None."""
    if path.startswith(_DEPLOYMENT):
        _, slash, rest = path[len(_DEPLOYMENT) :].partition("/")
        found = _EXACT.get("/v1/" + rest)
        return (found, slash + rest) if found is not None and found.mapped else None
    if path.startswith("/openai/v1/"):
        below = path[len("/openai") :]
        found = _EXACT.get(below) or next((one for prefix, one in _PREFIXES if below.startswith(prefix)), None)
        return (found, below[3:]) if found is not None and found.name not in ("files", "realtime") else None
    return None


def _from_azure(path: str, query: bytes, body: bytes) -> tuple[bytes, bytes]:
    """``query`` and ``body`` as ours: the version is that of the form, and the deployment is the model.

    Raises a 400 `ApiError` without a version.
    """
    if not path.startswith(_DEPLOYMENT):
        return query, body
    pairs = [pair for pair in query.split(b"&") if pair]
    if not any(pair.startswith(b"api-version=") and len(pair) > len(b"api-version=") for pair in pairs):
        raise bad_request(
            "Missing required query parameter: 'api-version'. Expected for instance api-version=2024-10-21.",
            "api-version",
            "missing_required_parameter",
        )
    query = b"&".join(pair for pair in pairs if not pair.startswith(b"api-version="))
    deployment = path[len(_DEPLOYMENT) :].partition("/")[0]
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        fields = _decode(body)
        if isinstance(fields, dict) and cast("dict[str, Any]", fields).get("model") != deployment:
            body = _encode({**cast("dict[str, Any]", fields), "model": deployment})
    return query, body


def _as_sent(scope: Scope, path: str) -> str:
    """``path``, the end of the request's, as the client wrote it: an escaped slash or question mark is part of a name.

    Raises a 400 `ApiError` for a path that would leave the address it is put behind.
    """
    if ".." in path and ".." in path.split("/"):
        raise bad_request("Invalid path: expected one without '..'.", code="invalid_value")
    raw: bytes = scope.get("raw_path") or b""
    if b"%" not in raw:
        return path
    before = len(scope["path"]) - len(path)
    if raw[:before].decode("latin-1") == scope["path"][:before]:
        return raw[before:].decode("latin-1")
    return quote(path)


def answer_headers(answer: Answer) -> list[tuple[bytes, bytes]]:
    """GATEWAY section 4."""
    made = [
        (b"x-portkey-trace-id", answer.trace_id.encode("latin-1", "replace")),
        (b"x-portkey-last-used-option-index", answer.path.encode()),
        (b"x-portkey-retry-attempt-count", b"%d" % answer.retries),
        (b"x-portkey-cache-status", answer.cache.encode()),
        (b"x-portkey-provider", answer.provider.encode()),
    ]
    if answer.final:
        made.append((b"x-portkey-gateway-exception", b"true"))
    made += [pair for pair in answer.headers if pair[0] != b"x-request-id"]
    return made


def error_headers(error: ApiError) -> list[tuple[bytes, bytes]]:
    """The headers of an error's answer."""
    made = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in error.headers.items()]
    return [*made, _JSON]


def _is_pretty(query: bytes) -> bool:
    """RT-09."""
    return any(pair.partition(b"=")[0] == b"pretty" for pair in query.split(b"&"))


async def _send_whole(send: Send, scope: Scope, status: int, head: list[tuple[bytes, bytes]], body: bytes) -> None:
    query: bytes = scope["query_string"]
    if b"pretty" in query and body[:1] in (b"{", b"[") and _is_pretty(query):
        with contextlib.suppress(msgspec.DecodeError):
            body = msgspec.json.format(body, indent=2)
    if status not in (204, 304):
        head.append((b"content-length", b"%d" % len(body)))
    if WHOLE in scope.get("extensions", ()):
        await send({"type": WHOLE, "status": status, "headers": head, "body": body})
        return
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _send_refusal(
    send: Send, scope: Scope, head: list[tuple[bytes, bytes]], error: ApiError, endpoint: Endpoint
) -> None:
    head = [*head, *error_headers(error)]
    await _send_whole(send, scope, error.status, head, refusal_body(error, endpoint))


async def _send_stream(
    send: Send, status: int, head: list[tuple[bytes, bytes]], stream: AsyncGenerator[bytes, None]
) -> None:
    """Send the pieces as they come, no faster than the client takes them. One that breaks off has no end (STM-10):
    the connection is closed, by which the client knows."""
    async with contextlib.aclosing(stream):
        await send({"type": "http.response.start", "status": status, "headers": head})
        try:
            async for piece in stream:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ProviderError as error:
            log.warning("an answer broke off: %s", error.message)
            await send(CUT)
            return
        except asyncio.CancelledError as error:
            await stream.athrow(error)  # it is for its log, too, why it ends
            raise
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Waiting(Protocol):
    def begin(self) -> None: ...


class Patience:
    """Lets what was added ``begin`` after a moment, of half of ``seconds`` up to all of them, unless it was removed
    before: one timer for all, since few are still there then."""

    __slots__ = ("_loop", "_new", "_old", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None  # whose timer runs
        self._new: set[_Waiting] = set()  # since the last look
        self._old: set[_Waiting] = set()  # of the time before it

    def add(self, leaving: _Waiting) -> None:
        """Let it begin after the moment."""
        self._new.add(leaving)
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._loop.call_later(self.seconds / 2, self._look)

    def remove(self, leaving: _Waiting) -> None:
        """It need not begin any more."""
        self._new.discard(leaving)
        self._old.discard(leaving)

    def _look(self) -> None:
        patient, self._old, self._new = self._old, self._new, set()
        for leaving in patient:
            leaving.begin()
        if self._old and self._loop is not None:
            self._loop.call_later(self.seconds / 2, self._look)
        else:
            self._loop = None


class _Leaving:
    """Cancels the task of a request whose client goes away: nobody pays for an answer that nobody reads.

    Most answers are there before anybody could leave, so it begins to look after a moment, or by `begin`.
    """

    __slots__ = ("_patience", "_receive", "_task", "_watching", "gone")

    def __init__(self, receive: Receive, patience: Patience) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._watching: asyncio.Task[None] | None = None
        self.gone = False
        self._patience = patience
        patience.add(self)

    def begin(self) -> None:
        """Look from now on."""
        if self._watching is None:
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    def end(self) -> None:
        """Look no longer."""
        self._patience.remove(self)
        # A task that was cancelled holds on to where it was, and so to all that it knew, until garbage is looked for.
        watching, self._watching, self._task = self._watching, None, None
        if watching is not None:
            watching.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None:
            self.gone = True
            self._task.cancel(LEFT)
