"""``/v1/realtime``: the client's WebSocket, joined to the one that the gateway opens for it (GATEWAY RT-02).

What must live here: ASGI's side of a WebSocket: how a browser names itself, the refusals before it opens, the relay.
What must not: which way it goes upstream. Each direction waits for its other side, and messages pass as they are.
"""

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from loomgate.errors import ApiError, ProviderError, StoreError
from loomgate.gateway.call import Request
from loomgate.gateway.fronts.errors import refusal_body
from loomgate.gateway.meter import STOPPING
from loomgate.gateway.realtime import Session
from loomgate.http.faults import overloaded, server_error
from loomgate.http.gateway import answer_headers, error_headers
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.ids import new_request_id

if TYPE_CHECKING:
    from loomgate.http.application import Application

log = logging.getLogger(__name__)

PATH = "/v1/realtime"
# How a browser, which cannot set headers, sends its key (OpenAI's form).
_KEY = "openai-insecure-api-key."
_NAMES = b"x-portkey-"
_HOP = frozenset({b"connection", b"upgrade", b"content-length", b"content-encoding", b"transfer-encoding"})
_NO_CODE, _BROKE = 1005, 1006  # these never travel
_NORMAL, _FAILED = 1000, 1011


class Realtime:
    """ASGI for every WebSocket."""

    def __init__(self, application: "Application") -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay one connection from its opening to its end, or refuse it with an HTTP answer."""
        request_id = new_request_id()
        head = [(b"x-request-id", request_id.encode())]
        await receive()  # websocket.connect
        try:
            if scope["path"] != PATH:
                raise ApiError(404, f"Invalid URL (WebSocket {scope['path'][:300]}). Expected {PATH}.")
            gateway = self._application.gateway
            if gateway is None:
                raise overloaded()
            request, offered = await self._request(scope)
            answer = await gateway.call(request)
            head += answer_headers(answer)
        except Exception as failure:
            if isinstance(failure, ApiError):
                error = failure
            else:
                log.exception("request %s failed", request_id)
                error = overloaded() if isinstance(failure, StoreError) else server_error(request_id)
            body = refusal_body(error, ENDPOINTS["realtime"])
            await _refuse(send, error.status, [*head, *error_headers(error)], body)
            return
        session = answer.session
        if session is None:
            await answer.close()
            await _refuse(send, answer.status, head, answer.body or b"")
            return
        chosen = session.subprotocol or ("realtime" if "realtime" in offered else None)
        told = [pair for pair in head if pair[0] not in _HOP and not pair[0].startswith(b"sec-websocket-")]
        outcome: str | None = STOPPING
        try:
            await send({"type": "websocket.accept", "subprotocol": chosen, "headers": told})
            outcome = await _relay(session, receive, send)
        except OSError:  # the client left meanwhile
            outcome = None
        except asyncio.CancelledError:
            # Nobody waits for this task but the server that carries it, which would log the cancellation as an error.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        finally:
            session.end()
            session.finish(outcome)

    async def _request(self, scope: Scope) -> tuple[Request, list[str]]:
        """The call that this connection is, and the subprotocols that the client offers besides its key.

        Headers are the same as for any request. For browsers the key may be a subprotocol, and what says where the
        call goes may be in the query. Raises what `Auth.caller` raises.
        """
        auth = self._application.auth
        if auth is None:
            raise overloaded()
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given: str = scope["query_string"].decode("latin-1")
        pairs = dict(parse_qsl(given, keep_blank_values=True))
        query = "&".join(pair for pair in given.split("&") if not pair.lower().startswith("x-portkey-"))
        for name, value in pairs.items():
            raw = name.lower().encode("latin-1", "replace")
            if raw.startswith(_NAMES):
                headers.setdefault(raw, value.encode())
        offered: list[str] = list(scope["subprotocols"])
        keys = [one.removeprefix(_KEY) for one in offered if one.startswith(_KEY)]
        if keys:
            headers.setdefault(b"authorization", b"Bearer " + keys[0].encode("latin-1", "replace"))
            offered = [one for one in offered if not one.startswith(_KEY)]
        headers.pop(b"sec-websocket-protocol", None)
        if offered:
            headers[b"sec-websocket-protocol"] = ", ".join(offered).encode("latin-1", "replace")
        caller = await auth.caller(scope, headers, azure=False)
        if (quota := self._application.quota) is not None:
            await quota.enter(scope, caller)
        model = pairs.get("model")
        request = Request(
            ENDPOINTS["realtime"],
            caller.naming,
            caller.workspace,
            method="GET",
            query=query,
            headers={
                name.decode("latin-1"): value.decode("utf-8", "surrogateescape") for name, value in headers.items()
            },
            content_type="",
            fields={"model": model} if model else {},
        )
        return request, offered


async def _refuse(send: Send, status: int, head: list[tuple[bytes, bytes]], body: bytes) -> None:
    kept = [pair for pair in head if pair[0] not in _HOP]
    with contextlib.suppress(OSError):
        await send({"type": "websocket.http.response.start", "status": status, "headers": kept})
        await send({"type": "websocket.http.response.body", "body": body})


async def _relay(session: Session, receive: Receive, send: Send) -> str | None:
    """Carry messages until either side is gone, and tell the other one how. What went wrong, if anything did."""
    start = asyncio.get_running_loop().create_task
    up, down, beat = start(_up(session, receive)), start(_down(session, send)), start(session.keep_alive())
    error: str | None = None
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if up.done() and up.exception() is None:
            down.cancel()
            await session.close(*up.result())
            return None
        if not down.done():
            # The endpoint takes nothing more. If it closed, what it said before is still to be carried.
            if session.closed is None:
                session.end()
            await down
        elif (failure := down.exception()) is not None:
            raise failure
        code, reason = session.closed or (_BROKE, "")
    except OSError:
        return None  # the client left
    except ProviderError as failure:
        code, reason, error = _BROKE, "", failure.message
    finally:
        for task in (up, down, beat):
            task.cancel()
        await asyncio.gather(up, down, beat, return_exceptions=True)
    if code == _BROKE:
        error = error or "The endpoint broke the connection."
        code, reason = _FAILED, "The endpoint broke the connection."
    closing: dict[str, Any] = {"type": "websocket.close", "code": _NORMAL if code == _NO_CODE else code}
    with contextlib.suppress(OSError):
        await send({**closing, "reason": reason})
    return error


async def _up(session: Session, receive: Receive) -> tuple[int, str]:
    """The client's messages, until it closes: with which code and reason. Raises `ProviderError`."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return message.get("code") or _NO_CODE, message.get("reason") or ""
        text = message.get("text")
        await session.send(message["bytes"] if text is None else text)


async def _down(session: Session, send: Send) -> None:
    """The endpoint's messages, until it closes. Raises `ProviderError`; `OSError` when the client is gone."""
    while (message := await session.recv()) is not None:
        kind = "text" if isinstance(message, str) else "bytes"
        await send({"type": "websocket.send", kind: message})
