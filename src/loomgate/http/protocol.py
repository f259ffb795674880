"""How uvicorn's HTTP carries a short answer: its head and its body in one write.

What must live here: that, and nothing that uvicorn does as well. What must not: what is in an answer. uvicorn writes
the head as soon as it has it, so that a whole answer costs two system calls, and often its client two reads.
"""

import asyncio
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

_LONGEST = 256 * 1024  # bytes of a body that are worth copying behind their head
_NO_BODY = frozenset({204, 304})
# A message of ours beside ASGI's: the answer that has begun ends here, without its end, and so does the connection.
CUT: dict[str, Any] = {"type": "loomgate.response.cut"}
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    _head: dict[str, Any] | None = None

    async def send(self, message: "ASGISendEvent") -> None:
        """ASGI. The head of an answer that says its length waits for the body, which follows at once."""
        given = cast(dict[str, Any], message)
        if given is CUT:
            self.disconnected = True  # as if the client had left: nothing more is said, and nobody complains of that
            self.transport.close()
            return
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
        body: bytes = message.get("body", b"")
        status: int = head["status"]
        if (
            message["type"] != "http.response.body"
            or message.get("more_body")
            or len(body) > _LONGEST
            or status in _NO_BODY
            or self.scope["method"] == "HEAD"
        ):
            return None
        headers = [*self.default_headers, *head["headers"]]
        parts = [STATUS_LINE[status]]
        length = b"%d" % len(body)
        for name, value in headers:
            if name in _FRAMING and (name != b"content-length" or value != length):
                return None
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            parts.append(b"connection: close\r\n")
        made = b"".join(parts)
        lines = 1 + len(headers) + (not self.keep_alive)
        if made.count(b"\n") != lines or made.count(b"\r") != lines or b"\0" in made:
            return None  # a header that would be several: uvicorn refuses it
        return b"%b\r\n%b" % (made, body)

    async def _finish(self, whole: bytes) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.waiting_for_100_continue = False
        self.response_started = self.response_complete = True
        self.transport.write(whole)
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _has_length(headers: list[tuple[bytes, bytes]]) -> bool:
    return b"content-length" in [name for name, _ in headers]


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with `Cycle` for its requests; without what our settings of it rule out."""

    def on_headers_complete(self) -> None:
        """Begin to answer, or wait for the answer before."""
        parser, scope = cast(httptools.HttpRequestParser, self.parser), self.scope
        version = parser.get_http_version()
        scope["method"] = parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        if "%" in path:
            from urllib.parse import unquote

            path = unquote(path)
        scope["path"] = path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        before = cast("RequestResponseCycle | None", self.cycle)
        app = cast(Any, self.app)  # pyright: ignore[reportUnknownMemberType] - loaded from anywhere
        self.cycle = cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
