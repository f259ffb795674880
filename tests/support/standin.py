"""A vendor's endpoint that answers any path with the bytes it was given, and keeps what it was asked.

What must live here: bytes out, bytes in. What must not: what they mean, nor anything that a client library mends.
"""

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any, Self

import msgspec

from tests.support.peer import Peer, Request, Server

EVENTS = "text/event-stream"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. ``pieces``: the body, chunked as it is here; else ``body`` with its length. ``cut``: the connection
    ends where the end of the body should be. ``hang``: there is no answer at all. ``wait``: seconds
    before each further piece; ``endless``: the last one again and again."""

    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)
    body: bytes = b"{}"
    pieces: tuple[bytes, ...] | None = None
    cut: bool = False
    hang: bool = False
    wait: float = 0.0
    endless: bool = False


class StandIn:
    """The endpoint; its address, without a path, is ``url``. Start it on the event loop that is to serve it."""

    def __init__(self) -> None:
        self._server = Server(self._play)
        self._next: list[Said] = []
        self._always: dict[str, Said] = {}
        self.sent = 0  # bytes of slow answers

    async def start(self) -> Self:
        """Listen on 127.0.0.1."""
        await self._server.__aenter__()
        return self

    async def stop(self) -> None:
        """End every connection."""
        await self._server.__aexit__(None)

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``."""
        return self._server.url

    @property
    def open(self) -> int:
        """Connections that are open."""
        return self._server.open

    @property
    def asked(self) -> list[Request]:
        """The requests so far, connection by connection."""
        return self._server.requests

    @property
    def last(self) -> Request:
        """The only request since the last `forget`."""
        (found,) = self.asked
        return found

    def forget(self) -> None:
        """Begin anew: no requests, no answers."""
        self._next.clear()
        self._always.clear()
        for peer in self._server.peers:
            peer.requests.clear()

    def say(self, body: bytes | Any = b"{}", status: str = "200 OK", *more: tuple[str, str], **fields: Any) -> None:
        """The answer to the next request; given once more, to the one after it. ``body`` is JSON unless bytes."""
        self._next.append(_said(body, status, more, fields))

    def stream(self, *pieces: bytes, cut: bool = False, kind: str = EVENTS) -> None:
        """As `say`, in pieces."""
        self._next.append(Said(headers=(("Content-Type", kind),), pieces=pieces, cut=cut))

    def hang(self) -> None:
        """The next request is never answered."""
        self._next.append(Said(hang=True))

    def slow(self, *pieces: bytes, wait: float) -> None:
        """As `stream`, with ``wait`` seconds between the pieces."""
        self._next.append(Said(headers=(("Content-Type", EVENTS),), pieces=pieces, wait=wait))

    def endless(self, *pieces: bytes, wait: float = 0.0) -> None:
        """As `slow`; the last piece comes again and again until the client leaves."""
        self._next.append(Said(headers=(("Content-Type", EVENTS),), pieces=pieces, wait=wait, endless=True))

    def at(self, path: str, body: bytes | Any, status: str = "200 OK", *more: tuple[str, str], **fields: Any) -> None:
        """The answer to every request whose line begins with ``path``, as ``"POST /v1/files"``; the longest counts."""
        self._always[path] = _said(body, status, more, fields)

    async def _play(self, peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            said = self._next.pop(0) if self._next else self._found(request.line)
            if said.hang:
                await peer.gone()
                return
            lines = [f"HTTP/1.1 {said.status}", *(f"{name}: {value}" for name, value in said.headers)]
            bare = said.status[:3] in ("204", "304")
            if not bare:
                lines.append(
                    "Transfer-Encoding: chunked" if said.pieces is not None else f"Content-Length: {len(said.body)}"
                )
            await peer.say("\r\n".join([*lines, "", ""]).encode("latin-1"))
            if request.line.startswith("HEAD ") or bare:
                continue
            if said.pieces is None:
                await peer.say(said.body)
            elif said.wait or said.endless:
                await self._slowly(peer, said)
            else:
                await peer.say(chunked(said.pieces))
            if said.cut:
                return
            if said.pieces is not None:
                await peer.say(b"0\r\n\r\n")

    async def _slowly(self, peer: Peer, said: Said) -> None:
        pieces = said.pieces or ()
        going = asyncio.current_task()
        assert going is not None

        async def watch() -> None:
            await peer.gone()
            going.cancel()

        watching = asyncio.create_task(watch()) if said.endless else None
        try:
            for number in itertools.count() if said.endless else range(len(pieces)):
                if number:
                    await asyncio.sleep(said.wait)
                data = chunked(pieces[min(number, len(pieces) - 1) :][:1])
                await peer.say(data)
                self.sent += len(data)
        finally:
            if watching is not None:
                watching.cancel()

    def _found(self, line: str) -> Said:
        fitting = [path for path in self._always if line.startswith(path)]
        if not fitting:
            return Said(status="404 Not Found", body=b'{"error":{"message":"nothing here"}}')
        return self._always[max(fitting, key=len)]


def _said(body: bytes | Any, status: str, more: tuple[tuple[str, str], ...], fields: dict[str, Any]) -> Said:
    data: bytes = body if isinstance(body, bytes) else msgspec.json.encode(body)
    if not any(name.lower() == "content-type" for name, _ in more):
        more = (("Content-Type", "application/json"), *more)
    return Said(status=status, headers=more, body=data, **fields)


def chunked(pieces: Iterable[bytes]) -> bytes:
    """``pieces`` in HTTP's chunked coding, without its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def chat_answer(text: str = "Hi.", **more: Any) -> dict[str, Any]:
    """A chat completion as OpenAI answers it."""
    return {
        "id": "chatcmpl-standin",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
        **more,
    }


def response_answer(**more: Any) -> dict[str, Any]:
    """A whole response that says "Hello.", as OpenAI's Responses have it."""
    text = {"type": "output_text", "text": "Hello.", "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    made = {"id": "resp_1", "object": "response", "created_at": 1.0, "model": "gpt-4o", "status": "completed"}
    made |= {"output": [message], "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {**made, **more}


def chat_events(*texts: str) -> tuple[bytes, ...]:
    """The events of a streamed chat completion as OpenAI sends them, one each."""
    made: list[bytes] = []
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": text}, None) for text in texts]
    for delta, finish in [*deltas, ({}, "stop")]:
        chunk = {
            "id": "chatcmpl-standin",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        made.append(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
    return (*made, b"data: [DONE]\n\n")
