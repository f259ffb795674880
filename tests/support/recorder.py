"""A recording proxy: stands between any client and a server, passes every byte on, and keeps what passed.

What must live here: seeing the wire as it is. What must not: changing it. `Recorder.check` holds everything that was
seen against the official description, so that a test which drives an SDK also checks the bytes below it.
"""

import contextlib
import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httptools

from tests.support import openapi, schema, sse

_CHUNK = 65536


@dataclass
class Exchange:
    """One request and its answer; header names in lower case, bodies without transfer coding. ``status`` 0: no answer.

    ``whole``: the answer came to its end.
    """

    method: str = ""
    path: str = ""
    sent: dict[str, str] = field(default_factory=dict[str, str])
    request: bytes = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    whole: bool = False

    @property
    def streamed(self) -> bool:
        """Was the answer a stream of events?"""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The checked events of a whole stream: (name, parsed data)."""
        with_ids = self.sent.get("loomgate-event-ids") == "true"
        return sse.check_stream(self.body, ids=with_ids)

    @property
    def json(self) -> Any:
        """The answer's body, parsed as strict clients do it."""
        return schema.parse_json(self.body)


class _Request:
    """Callbacks of the request parser: a new `Exchange` for each request, before its bytes are passed on."""

    def __init__(self, exchanges: list[Exchange], waiting: deque[Exchange]) -> None:
        self._all, self._waiting = exchanges, waiting
        self.parser: Any = httptools.HttpRequestParser(self)
        self._now = Exchange()

    def on_message_begin(self) -> None:
        self._now = Exchange()
        self._all.append(self._now)
        self._waiting.append(self._now)

    def on_url(self, url: bytes) -> None:
        self._now.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._now.sent[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._now.method = self.parser.get_method().decode()

    def on_body(self, body: bytes) -> None:
        self._now.request += body


class _Response:
    """Callbacks of the response parser: answers come in the order of the requests."""

    def __init__(self, waiting: deque[Exchange]) -> None:
        self._waiting = waiting
        self.parser: Any = httptools.HttpResponseParser(self)
        self._now = Exchange()

    def on_message_begin(self) -> None:
        self._now = self._waiting.popleft()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._now.headers[name.decode().lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._now.status = self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._now.body += body

    def on_message_complete(self) -> None:
        self._now.whole = True


class Recorder:
    """``with Recorder(server.url) as wire: … wire.url …``; ``exchanges`` in the order in which requests began."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.exchanges: list[Exchange] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._start(self._accept)

    def _start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, name="recorder", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            server = socket.create_connection(self._upstream)
            waiting: deque[Exchange] = deque()
            self._sockets += [client, server]
            self._start(self._pass, client, server, _Request(self.exchanges, waiting).parser)
            self._start(self._pass, server, client, _Response(waiting).parser)

    def _pass(self, source: socket.socket, target: socket.socket, parser: Any) -> None:
        try:
            while data := source.recv(_CHUNK):
                parser.feed_data(data)
                target.sendall(data)
        except (OSError, httptools.HttpParserError) as failure:
            if isinstance(failure, httptools.HttpParserError):
                self._failure = failure
        finally:
            # Either side's end is the other's, as without a proxy between them.
            for one in (source, target):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def check(self) -> None:
        """Hold every answer seen so far against the description, events of whole streams included.

        A stream that its client left early is checked by its headers alone; a joined stream (an extension) is for its
        test to check. Raises `AssertionError`.
        """
        if self._failure is not None:
            raise AssertionError(f"not HTTP: {self._failure}") from self._failure
        for seen in self.exchanges:
            if not seen.status:
                continue
            if seen.streamed:
                schema.check_headers(seen.headers, "text/event-stream")
                if seen.body.endswith(b"data: [DONE]\n\n") and seen.method == "POST":
                    assert seen.events
            elif seen.status >= 400 or openapi.find_operation(seen.method, seen.path.partition("?")[0]):
                schema.check_response(seen.method, seen.path, seen.status, seen.body, headers=seen.headers)

    def streams(self) -> list[Exchange]:
        """The exchanges whose answer was a stream."""
        return [seen for seen in self.exchanges if seen.streamed]
