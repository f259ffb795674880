"""A client in the middle of a stream: reads up to an event, lets the test do something, and reads on.

`Viewer` speaks plain HTTP and keeps every byte, so that at the end the whole stream can be held against the rules.
"""

import http.client
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support import schema, sse
from tests.support.server import Client

_PATIENCE = 20.0


class Viewer:
    """``with Viewer(client, "POST", path, body) as viewer: …``; leaving hangs up. Fails unless a stream is answered."""

    def __init__(
        self, client: Client, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        given = {**client.headers, "Content-Type": "application/json", **(headers or {})}
        if client.key is not None:
            given["Authorization"] = f"Bearer {client.key}"
        self._ids = method == "GET" or given.get("Loomgate-Event-Ids") == "true"
        self._connection = http.client.HTTPConnection(urlsplit(client.url).netloc, timeout=_PATIENCE)
        self._connection.request(method, client.prefix + path, None if body is None else json.dumps(body), given)
        self._response = self._connection.getresponse()
        self.body = b""
        if self._response.status != 200:
            text = self._response.read()
            self.close()
            raise AssertionError(f"{method} {path} -> {self._response.status}: {text.decode()}")
        self.headers = {name.lower(): value for name, value in self._response.getheaders()}
        schema.check_headers(self.headers, "text/event-stream")

    def until(self, name: str, times: int = 1) -> Any:
        """Read until the event ``name`` has come (``times`` from here on); gives its data, parsed."""
        while True:
            block = self._block()
            lines = [line for line in block.split("\n") if not line.startswith((":", "id: "))]
            if lines[0] == f"event: {name}":
                times -= 1
                if not times:
                    return schema.parse_json(lines[1].removeprefix("data: "))

    def _block(self) -> str:
        block = b""
        while not block.endswith(b"\n\n"):
            line = self._response.readline()
            assert line, f"the stream ended: {self.body[-600:]!r}"
            block += line
            self.body += line
        return block.decode()

    def comment(self) -> str:
        """Read until a comment has come; gives its text."""
        while True:
            block = self._block()
            if block.startswith(":"):
                return block.strip()

    def rest(self) -> bytes:
        """Read to the end; gives the whole stream from its beginning."""
        self.body += self._response.read()
        return self.body

    def events(self) -> list[tuple[str, Any]]:
        """Read to the end; gives all events as (name, data), checked one by one and against each other."""
        return sse.check_stream(self.rest(), ids=self._ids)

    def close(self) -> None:
        """Hang up."""
        # Both: the response holds the socket's last reference.
        self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ask(client: Client, text: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Path and body that stream a run of the scripted model on a new thread with the message ``text``."""
    thread = client.thread(text)
    assistant = client.assistant(tools=fields.pop("tools", []))
    return f"/threads/{thread['id']}/runs", {"assistant_id": assistant["id"], "stream": True, **fields}


def streamed(client: Client, text: str, **fields: Any) -> Viewer:
    """A viewer of such a run."""
    return Viewer(client, "POST", *ask(client, text, **fields))


def path_of(run: Mapping[str, Any]) -> str:
    """The path of a run."""
    return f"/threads/{run['thread_id']}/runs/{run['id']}"
