"""A stand-in model endpoint: OpenAI's chat-completions wire over real HTTP, played by the scripted model.

What must live here: the exact bytes that such an endpoint sends, and the ways in which a wire goes wrong. What must
not: anything of our own client, or else both could be wrong in the same way.

In a test: ``async with ModelEndpoint() as endpoint: … endpoint.base_url …``. As a process, for benchmarks and crash
tests: ``python -m tests.support.upstream --port 8123`` (prints the address; port 0 picks a free one). There, faults
are queued with ``POST /control/faults`` (a JSON array of `Fault`) and requests read with ``GET /control/requests``.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import ssl
from typing import Any, Self

import msgspec

from loomgate import clock
from loomgate.providers.scripted import Fail, Wait, play
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Finish,
    FunctionTool,
    NamedFunction,
    RefusalDelta,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

_FIELDS = frozenset(
    "model messages stream stream_options tools tool_choice parallel_tool_calls response_format temperature top_p "
    "max_completion_tokens max_tokens reasoning_effort n stop seed user".split()
)


class Fault(msgspec.Struct, kw_only=True):
    """What goes wrong with one request. The first that fits is used up.

    ``status`` answers with that error (``body`` replaces the vendor's usual one, ``headers`` are added);
    ``wait`` delays the first byte by seconds on `loomgate.clock`; ``cut_after`` breaks the connection after so many
    bytes of the body (0: right after the headers); ``no_answer`` breaks it before the headers; ``stale`` as well, but
    only when the connection has served before; ``malformed`` sends half a JSON object as the second event;
    ``split`` writes every byte by itself; ``hang_after`` sends so many bytes of the body and then nothing more;
    ``ignore_stream`` answers in one piece though a stream was asked for; ``no_done`` ends without ``[DONE]``.
    """

    status: int | None = None
    body: Any = None
    headers: dict[str, str] = {}
    wait: float = 0.0
    cut_after: int | None = None
    hang_after: int | None = None
    no_answer: bool = False
    stale: bool = False
    malformed: bool = False
    split: bool = False
    ignore_stream: bool = False
    no_done: bool = False


class Request(msgspec.Struct):
    """A request as it came: header names in lower case, the body decoded, and on which connection (from 1)."""

    path: str
    headers: dict[str, str]
    body: Any
    connection: int


def _error(message: str, type: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


# The bodies as the vendor words them.
ERRORS: dict[int, dict[str, Any]] = {
    400: _error("Invalid value for 'content': expected a string, got null.", "invalid_request_error", None, "messages"),
    401: _error(
        "Incorrect API key provided: sk-stand****-key. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
        "invalid_request_error",
        "invalid_api_key",
    ),
    403: _error(
        "Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"
    ),
    404: _error(
        "The model `stand-in` does not exist or you do not have access to it.",
        "invalid_request_error",
        "model_not_found",
    ),
    408: _error("Request timed out.", "timeout"),
    429: _error(
        "Rate limit reached for stand-in in organization org-x on tokens per min (TPM): Limit 30000, Used 29500, "
        "Requested 1200. Please try again in 1.4s. Visit https://platform.openai.com/account/rate-limits to learn "
        "more.",
        "tokens",
        "rate_limit_exceeded",
    ),
    500: _error(
        "The server had an error while processing your request. Sorry about that! You can retry your request, or "
        "contact us through our help center at help.openai.com if the error persists.",
        "server_error",
    ),
    503: _error("The engine is currently overloaded, please try again later.", "server_error"),
    529: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
}
QUOTA = _error(
    "You exceeded your current quota, please check your plan and billing details. For more information on this "
    "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
    "insufficient_quota",
    "insufficient_quota",
)
_STATUS_OF_KIND = {
    "rate_limit": 429,
    "overloaded": 503,
    "server": 500,
    "timeout": 408,
    "invalid": 400,
    "model_not_found": 404,
    "auth": 401,
    "quota": 429,
}


class _GoneError(Exception):
    """The script or a fault breaks the connection here."""


class ModelEndpoint:
    """The server. ``api_key``: if given, any other key is answered 401. ``faults`` and ``requests`` are to use."""

    def __init__(self, api_key: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.api_key = api_key
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.open_connections = 0
        self.dropped = asyncio.Event()  # set when a client leaves in the middle of an answer
        self._failures: dict[bytes, int] = {}
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.base_url = ""

    async def start(self, port: int = 0) -> None:
        """Listen on 127.0.0.1; ``base_url`` ends in ``/v1``."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._tls)
        self.base_url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- HTTP ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        self.open_connections += 1
        number, served = self._connections, 0
        try:
            while await self._one(reader, writer, number, served):
                served += 1
        except _GoneError:
            writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, served: int) -> bool:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError:
            return False
        method, path, _ = head[0].split(" ")
        pairs = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        raw = b""
        if "content-length" in headers:
            raw = await reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                raw += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        if path == "/control/faults":
            self.faults.extend(msgspec.json.decode(raw, type=list[Fault]))
            return self._whole(writer, 200, {"faults": len(self.faults)})
        if path == "/control/requests":
            return self._whole(writer, 200, msgspec.to_builtins(self.requests))
        if method != "POST" or not path.endswith("/chat/completions"):
            return self._whole(writer, 404, _error(f"Invalid URL ({method} {path})", "invalid_request_error"))
        body = json.loads(raw)
        self.requests.append(Request(path, headers, body, number))
        fault = next((f for f in self.faults if not f.stale or served), None) or Fault()
        if fault in self.faults:
            self.faults.remove(fault)
        if fault.stale or fault.no_answer:
            raise _GoneError
        answering = asyncio.current_task()
        assert answering is not None
        watcher = asyncio.create_task(self._leaving(reader, answering))
        try:
            return await self._answer(writer, headers, body, raw, fault)
        except ConnectionError:
            self.dropped.set()
            raise
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])  # or else it would still be the one who reads

    async def _leaving(self, reader: asyncio.StreamReader, answering: asyncio.Task[None]) -> None:
        """Notice at once when the client goes away, even while nothing is written (nobody pipelines here)."""
        try:
            more = await reader.read(1)
        except ConnectionError:
            more = b""
        if not more:
            self.dropped.set()
            answering.cancel()

    def _whole(
        self, writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None
    ) -> bool:
        data = body if isinstance(body, bytes) else json.dumps(body, indent=2).encode()
        lines = [
            f"HTTP/1.1 {status} X",
            "content-type: application/json",
            f"content-length: {len(data)}",
            "x-request-id: req_standin",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return True

    # --- chat completions ---

    async def _answer(
        self, writer: asyncio.StreamWriter, headers: dict[str, str], body: dict[str, Any], raw: bytes, fault: Fault
    ) -> bool:
        await clock.sleep(fault.wait)
        if fault.status is not None:
            return self._whole(writer, fault.status, fault.body or ERRORS.get(fault.status, {}), fault.headers)
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            return self._whole(writer, 401, ERRORS[401])
        for name in body:
            if name not in _FIELDS:
                said = f"Unrecognized request argument supplied: {name}"
                return self._whole(writer, 400, _error(said, "invalid_request_error"))
        if "tools" not in body and ("tool_choice" in body or "parallel_tool_calls" in body):
            name = "tool_choice" if "tool_choice" in body else "parallel_tool_calls"
            said = f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified."
            return self._whole(writer, 400, _error(said, "invalid_request_error", None, name))
        chat = read_chat(body)
        print_key = hashlib.sha256(raw).digest()
        beats = play(chat, self._failures.get(print_key, 0))
        if isinstance(beats[-1], Fail):
            self._failures[print_key] = self._failures.get(print_key, 0) + 1
        if body.get("stream") and not fault.ignore_stream:
            return await self._stream(writer, body, beats, fault)
        for beat in beats:
            if isinstance(beat, Wait):
                await clock.sleep(beat.seconds)
            elif isinstance(beat, Fail):
                return self._failed(writer, beat)
        return self._whole(writer, 200, completion(body["model"], beats))

    def _failed(self, writer: asyncio.StreamWriter, beat: Fail) -> bool:
        if beat.status is None and beat.kind in ("connect", "cut"):
            raise _GoneError
        if beat.kind == "malformed":
            return self._whole(writer, 200, b'{"id": "chatcmpl-')
        status = beat.status or _STATUS_OF_KIND[beat.kind]
        usual = ERRORS.get(status) or _error(f"The stand-in answers {status}.", "stand_in_error")
        headers = {} if beat.retry_after is None else {"retry-after": f"{beat.retry_after:g}"}
        return self._whole(writer, status, QUOTA if beat.kind == "quota" else usual, headers)

    async def _stream(self, writer: asyncio.StreamWriter, body: dict[str, Any], beats: list[Any], fault: Fault) -> bool:
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        out = _Body(writer, fault)
        for event in _events(body["model"], beats, usage):
            if isinstance(event, Wait):
                await clock.sleep(event.seconds)
            elif isinstance(event, Fail):
                if not out.begun:
                    return self._failed(writer, event)
                if event.status is None and event.kind in ("connect", "cut"):
                    await out.flush()
                    raise _GoneError
                if event.kind == "malformed":
                    await out.write(b'data: {"id": "chatcmpl-\n\n')
                    return await out.end()
                status = event.status or _STATUS_OF_KIND[event.kind]
                told = QUOTA if event.kind == "quota" else ERRORS.get(status) or ERRORS[500]
                await out.write(b"data: " + json.dumps(told).encode() + b"\n\n")
                return await out.end()
            else:
                await out.write(event)
        if not fault.no_done:
            await out.write(b"data: [DONE]\n\n")
        return await out.end()


class _Body:
    """A chunked response body, with the faults that bodies have."""

    def __init__(self, writer: asyncio.StreamWriter, fault: Fault) -> None:
        self._writer = writer
        self._fault = fault
        self._sent = 0
        self._events = 0
        self.begun = False

    async def write(self, data: bytes) -> None:
        if not self.begun:
            self.begun = True
            self._writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                b"x-request-id: req_standin\r\ntransfer-encoding: chunked\r\n\r\n"
            )
        self._events += 1
        if self._fault.malformed and self._events == 2:
            data = data[: len(data) // 2] + b"\n\n"
        for limit in (self._fault.cut_after, self._fault.hang_after):
            if limit is not None and self._sent + len(data) > limit:
                await self._send(data[: limit - self._sent])
                await self.flush()
                if limit == self._fault.hang_after:
                    await asyncio.Event().wait()
                raise _GoneError
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        self._sent += len(data)
        for part in [data[i : i + 1] for i in range(len(data))] if self._fault.split else [data] if data else []:
            self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            if self._fault.split:
                await self._writer.drain()
                await asyncio.sleep(0)

    async def flush(self) -> None:
        """Let the bytes reach the socket before the connection is broken."""
        await self._writer.drain()
        await asyncio.sleep(0.02)

    async def end(self) -> bool:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()
        return True


def _events(model: str, beats: list[Any], usage: bool) -> list[Any]:
    """The events of a stream, as the vendor frames them; pauses and failures stand in between."""
    events: list[Any] = []
    frame = {
        "id": "chatcmpl-StandIn0000000000000000000",
        "object": "chat.completion.chunk",
        "created": clock.timestamp(),
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_standin",
    }

    def add(delta: dict[str, Any], reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        whole = {**frame, "choices": [choice], **({"usage": None} if usage else {})}
        events.append(b"data: " + json.dumps(whole, separators=(",", ":")).encode() + b"\n\n")

    begun = False
    for beat in beats:
        if not begun and not isinstance(beat, Wait | Fail):
            begun = True
            first = isinstance(beat, ToolCallDelta)
            add({"role": "assistant", "content": None if first else "", "refusal": None})
        if isinstance(beat, TextDelta):
            add({"content": beat.text})
        elif isinstance(beat, RefusalDelta):
            add({"refusal": beat.text})
        elif isinstance(beat, ToolCallDelta):
            function: dict[str, Any] = {"arguments": beat.arguments}
            call: dict[str, Any] = {"index": beat.index, "function": function}
            if beat.name is not None:
                function = {"name": beat.name, **function}
                call = {"index": beat.index, "id": beat.id, "type": "function", "function": function}
            add({"tool_calls": [call]})
        elif isinstance(beat, Finish):
            add({}, beat.reason)
            if usage and beat.usage is not None:
                whole = {**frame, "choices": [], "usage": usage_of(beat.usage)}
                events.append(b"data: " + json.dumps(whole, separators=(",", ":")).encode() + b"\n\n")
        else:
            events.append(beat)
    return events


def usage_of(usage: Usage) -> dict[str, Any]:
    """``usage`` as the vendor writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def completion(model: str, beats: list[Any]) -> dict[str, Any]:
    """The answer in one piece."""
    text = "".join(beat.text for beat in beats if isinstance(beat, TextDelta))
    refusal = "".join(beat.text for beat in beats if isinstance(beat, RefusalDelta))
    calls: list[dict[str, Any]] = []
    for beat in beats:
        if isinstance(beat, ToolCallDelta):
            if beat.name is not None:
                calls.append({"id": beat.id, "type": "function", "function": {"name": beat.name, "arguments": ""}})
            calls[beat.index]["function"]["arguments"] += beat.arguments
    end = beats[-1]
    assert isinstance(end, Finish)
    assert end.usage is not None
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": refusal or None}
    if calls:
        message["tool_calls"] = calls
    return {
        "id": "chatcmpl-StandIn0000000000000000000",
        "object": "chat.completion",
        "created": clock.timestamp(),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}],
        "usage": usage_of(end.usage),
        "service_tier": "default",
        "system_fingerprint": "fp_standin",
    }


def read_chat(body: dict[str, Any]) -> Chat:
    """The request as a `Chat`, read independently of the code that wrote it."""
    messages = [
        ChatMessage(
            role="system" if message["role"] == "developer" else message["role"],
            content=_text(message.get("content")),
            refusal=message.get("refusal"),
            tool_calls=[
                ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
                for call in message.get("tool_calls") or ()
            ],
            tool_call_id=message.get("tool_call_id"),
        )
        for message in body["messages"]
    ]
    choice = body.get("tool_choice")
    return Chat(
        model=body["model"],
        messages=messages,
        tools=[FunctionTool(**tool["function"]) for tool in body.get("tools") or ()],
        tool_choice=NamedFunction(choice["function"]["name"]) if isinstance(choice, dict) else choice,
        parallel_tool_calls=body.get("parallel_tool_calls"),
        response_format=body.get("response_format"),
        max_completion_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
    )


def _text(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


async def _main(port: int) -> None:
    endpoint = ModelEndpoint()
    await endpoint.start(port)
    print(endpoint.base_url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args().port))
