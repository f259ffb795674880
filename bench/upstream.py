"""An instant model endpoint: chat completions in OpenAI's exact wire form, at next to no cost of its own.

What must live here: bytes built beforehand and the parsing needed to choose between them. What must not:
anything that makes the endpoint slower or cleverer, since its cost is subtracted from every figure.

``python -m bench.upstream [--port N] [--core N]`` prints ``listening 127.0.0.1:PORT`` once it accepts
connections. It answers ``POST /v1/chat/completions`` (stream or not, with usage when ``stream_options`` asks
for it), ``GET /v1/models``, and ``GET /count``: how many completions it has served, so that a bench can tell
that each of its runs really called the model.
"""

import argparse
import asyncio
import contextlib
import os
import time
from typing import cast

import httptools
import msgspec
import uvloop

MODEL = "bench-model"
WORDS = ("Loom", "gate", " weaves", " the", " threads", " of", " your", " runs", " into", " cloth.")
REPLY = "".join(WORDS)
# The first piece of text in a stream of this endpoint, for timing the first token of a direct call.
FIRST_TOKEN = b'"content":"Loom"'
USAGE = {"prompt_tokens": 12, "completion_tokens": len(WORDS), "total_tokens": 12 + len(WORDS)}

# Stands in the prebuilt answers where the id of one answer goes; both are 24 characters, so lengths stay right.
_ID = "chatcmpl-" + "0" * 15
_PLACE = _ID.encode()


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Call(msgspec.Struct):
    """The part of a chat completion request that decides its answer's form."""

    model: str
    messages: list[msgspec.Raw]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_decode = msgspec.json.Decoder(_Call).decode


def _plain(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _completion(created: int) -> bytes:
    message = {"role": "assistant", "content": REPLY, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = {"id": _ID, "object": "chat.completion", "created": created, "model": MODEL}
    return _plain("200 OK", msgspec.json.encode(body | {"choices": [choice], "usage": USAGE}))


def _stream(created: int, with_usage: bool) -> bytes:
    """The whole answer of a streamed call, each event an HTTP chunk of its own as vendors send it."""
    common = {"id": _ID, "object": "chat.completion.chunk", "created": created, "model": MODEL}
    tail: dict[str, object] = {"usage": None} if with_usage else {}
    deltas: list[tuple[dict[str, object], str | None]] = [({"role": "assistant", "content": "", "refusal": None}, None)]
    for word in WORDS:
        deltas.append(({"content": word}, None))
    deltas.append(({}, "stop"))
    events: list[bytes] = []
    for delta, reason in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        events.append(msgspec.json.encode(common | {"choices": [choice]} | tail))
    if with_usage:
        events.append(msgspec.json.encode(common | {"choices": [], "usage": USAGE}))
    events.append(b"[DONE]")
    parts = [b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"]
    for event in events:
        frame = b"data: " + event + b"\n\n"
        parts.append(b"%x\r\n%b\r\n" % (len(frame), frame))
    return b"".join(parts) + b"0\r\n\r\n"


def _refusal(status: str, message: str, code: str | None = None) -> bytes:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return _plain(status, msgspec.json.encode({"error": error}))


class Answers:
    """Every answer this endpoint can give, built once; `chat` only puts the next id in."""

    def __init__(self) -> None:
        created = int(time.time())
        self._completion = _completion(created)
        self._stream = _stream(created, False)
        self._stream_usage = _stream(created, True)
        model = {"id": MODEL, "object": "model", "created": created, "owned_by": "bench"}
        self.models = _plain("200 OK", msgspec.json.encode({"object": "list", "data": [model]}))
        self.served = 0

    def chat(self, body: bytes) -> bytes:
        """The bytes that answer a chat completion request, or a 400 when ``body`` is not one."""
        try:
            call = _decode(body)
        except msgspec.MsgspecError as error:
            return _refusal("400 Bad Request", str(error))
        self.served += 1
        if not call.stream:
            answer = self._completion
        elif call.stream_options is not None and call.stream_options.include_usage:
            answer = self._stream_usage
        else:
            answer = self._stream
        return answer.replace(_PLACE, b"chatcmpl-%015d" % self.served)

    def count(self) -> bytes:
        """How many completions were served so far."""
        return _plain("200 OK", msgspec.json.encode({"count": self.served}))


class _Connection(asyncio.Protocol):
    """One kept-alive connection: requests are answered in the order in which they are completed."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._transport is not None:
                self._transport.write(_refusal("400 Bad Request", str(error)))
                self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        url, body = self._url, bytes(self._body)
        self._url = b""
        self._body.clear()
        if self._transport is None:
            return
        method = self._parser.get_method()
        if url == b"/v1/chat/completions" and method == b"POST":
            answer = self._answers.chat(body)
        elif url == b"/v1/models" and method == b"GET":
            answer = self._answers.models
        elif url == b"/count" and method == b"GET":
            answer = self._answers.count()
        else:
            answer = _refusal("404 Not Found", f"Invalid URL ({method.decode()} {url.decode('latin-1')})")
        self._transport.write(answer)
        if not self._parser.should_keep_alive():
            self._transport.close()


async def _serve(port: int) -> None:
    answers = Answers()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(answers), "127.0.0.1", port)
    print(f"listening 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="bench.upstream", description="An instant chat completions endpoint.")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--core", type=int, help="pin the process to this core")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(options.port))


if __name__ == "__main__":
    main()
