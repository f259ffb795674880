"""A client of the gateway that reads as far as it likes and then goes away.

What must live here: sockets, and the bytes of requests. What must not: expectations about answers.
"""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from tests.support.eventually import eventually
from tests.support.server import Client

OWN = "sk-own-provider-key-0123456789"
_PATIENCE = 10.0


class Conversation:
    """One connection with one request sent. ``got`` is all that came so far."""

    def __init__(self, url: str, request: bytes, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(_PATIENCE)
        self._socket.connect((parts.hostname, parts.port))
        self._socket.sendall(request)
        self.got = b""

    def until(self, mark: bytes) -> bytes:
        """Read until ``mark`` has come."""
        while mark not in self.got:
            data = self._socket.recv(65536)
            assert data, f"the answer ended: {self.got[-600:]!r}"
            self.got += data
        return self.got

    def rest(self) -> bytes:
        """Read until the server closes the connection (or ends it with an error)."""
        try:
            while data := self._socket.recv(1 << 20):
                self.got += data
        except ConnectionResetError:
            pass
        return self.got

    def leave(self, *, rudely: bool = False) -> None:
        """Hang up; ``rudely``: with a reset."""
        if rudely:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


@dataclass
class Caller:
    """``key`` is this server's; the vendor's is `OWN`."""

    url: str
    key: str

    def headers(self, upstream: str, provider: str = "openai", **more: str) -> dict[str, str]:
        """What names an endpoint; ``more``: ``config`` for ``x-portkey-config``. A value "" leaves it out."""
        given = {
            "authorization": f"Bearer {OWN}",
            "x-portkey-api-key": self.key,
            "x-portkey-provider": provider,
            "x-portkey-custom-host": upstream,
            **{"x-portkey-" + name.replace("_", "-"): value for name, value in more.items()},
        }
        return {name: value for name, value in given.items() if value}

    def ask(
        self,
        path: str,
        body: Any,
        headers: Mapping[str, str],
        *,
        method: str = "POST",
        receive_buffer: int | None = None,
    ) -> Conversation:
        """Send a request whose connection ends with its answer."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} /v1{path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return Conversation(self.url, "\r\n".join([*lines, "", ""]).encode() + data, receive_buffer)

    def log(self, number: int = 1) -> list[dict[str, Any]]:
        """The records of this caller's calls, newest first, as soon as there are that many."""
        client = Client(self.url, self.key, headers={})

        def look() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = client.raw("GET", "/v1/logs", check=False).json["data"]
            return found if len(found) >= number else []

        return eventually(look)


def chat(*, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}], "stream": stream, **fields}


def openai_event(text: str) -> bytes:
    """A chunk of a streamed chat completion as OpenAI sends it."""
    return (
        b"data: "
        + msgspec.json.encode(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1700000000,
                "model": "gpt-4o-mini",
                "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
            }
        )
        + b"\n\n"
    )


def anthropic_event(text: str, index: int = 0) -> bytes:
    """A piece of text as Anthropic streams it."""
    found = {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}
    return b"event: content_block_delta\ndata: " + msgspec.json.encode(found) + b"\n\n"


ANTHROPIC_START = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message",'
    b'"role":"assistant","model":"claude-3","content":[],"stop_reason":null,"stop_sequence":null,'
    b'"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def part(data: bytes) -> bytes:
    """``data`` as one piece in HTTP's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
