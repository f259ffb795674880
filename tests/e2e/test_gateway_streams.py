"""Streams of other vendors as OpenAI's clients read them, and clients that leave (GATEWAY section 11)."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from loomgate.wire.chat import Usage
from tests.providers.conformance.suite import Answer, Wire, wires
from tests.support.eventually import eventually
from tests.support.standin import chat_events
from tests.support.way import Way

WIRES = {wire.name: wire for wire in wires()}
ANTHROPIC = next(wire for wire in WIRES.values() if wire.vendor == "anthropic")
ANSWER = Answer(
    text=["Let me ", "look: ", "世界"],
    calls=[("weather", '{"city":"Berlin"}'), ("now", "{}")],
    finish="tool_calls",
    usage=Usage(30, 12),
)
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "now")
]


def _chunks(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream that ended as it should."""
    events = body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


@pytest.mark.parametrize("vendor", ["anthropic", "google", "cohere"])
@pytest.mark.behaviour("STM-03", "STM-04", "STM-05", "STM-06", "STM-08")
def test_other_vendors_streams(way: Way, vendor: str) -> None:
    wire: Wire = next(wire for wire in WIRES.values() if wire.vendor == vendor)
    body = wire.stream(ANSWER)
    way.upstream.stream(*(body[at : at + 37] for at in range(0, len(body), 37)), kind=wire.content_type)
    found = way.at(vendor).chat(stream=True, tools=TOOLS, model="some-model", stream_options={"include_usage": True})
    assert found.status == 200, found.body
    assert found.headers["content-type"].partition(";")[0] == "text/event-stream"
    chunks = _chunks(found.body)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me look: 世界"
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        for call in delta.get("tool_calls") or ():
            made = calls.setdefault(call["index"], ["", ""])
            made[0] += call["function"].get("name") or ""
            made[1] += call["function"].get("arguments") or ""
    assert [(name, json.loads(arguments)) for name, arguments in (calls[0], calls[1])] == [
        ("weather", {"city": "Berlin"}),
        ("now", {}),
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]] == [
        "tool_calls"
    ]


@pytest.mark.behaviour("STM-07")
def test_an_error_within_a_stream(way: Way) -> None:
    way.upstream.stream(ANTHROPIC.midstream_error() or b"")
    found = way.at("anthropic", "/v1").chat(stream=True)
    assert found.status == 200
    events = [event for event in found.body.decode().split("\n\n") if event]
    (error,) = (json.loads(event[6:]) for event in events if '"error"' in event)
    assert error["error"]["message"]
    assert "Half" in found.body.decode()


@pytest.mark.behaviour("STM-10")
@pytest.mark.parametrize("path", ["/chat/completions", "/proxy/threads/t/runs"])
def test_a_stream_that_breaks_ends_without_done(way: Way, path: str, caplog: pytest.LogCaptureFixture) -> None:
    way.upstream.stream(*chat_events("a", "b")[:2], cut=True)
    with _open(way, path) as answer, pytest.raises(http.client.IncompleteRead) as caught:
        answer.read()
    assert caught.value.partial == b"".join(chat_events("a", "b")[:2])
    assert "Traceback" not in caplog.text


# --- clients that leave, and slow ones --------------------------------------------------------------------------------


@contextmanager
def _open(way: Way, path: str = "/chat/completions") -> Iterator[http.client.HTTPResponse]:
    """The beginning of a streamed answer."""
    parts = urlsplit(way.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]})
    try:
        connection.request("POST", "/v1" + path, body, {**way.sent(), "Content-Type": "application/json"})
        with connection.getresponse() as answer:
            yield answer
    finally:
        connection.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_client_that_leaves_ends_the_call_at_once(way: Way, provider: str) -> None:
    first = (
        chat_events("a")[0]
        if provider == "openai"
        else b"\n\n".join(ANTHROPIC.stream(ANSWER).split(b"\n\n")[:4]) + b"\n\n"
    )
    way.upstream.endless(first, b": nothing\n\n", wait=10)
    there = way.at(provider, "/v1")
    with _open(there) as answer:
        assert answer.read1(10)
        assert way.upstream.open == 1
    eventually(lambda: way.upstream.open == 0, patience=1.0)


def test_a_client_that_leaves_before_the_answer_ends_the_call(way: Way) -> None:
    way.upstream.hang()
    parts = urlsplit(way.url)
    body = b'{"model":"m","messages":[]}'
    head = "".join(f"{name}: {value}\r\n" for name, value in way.sent().items())
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=5) as client:
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n{head}Content-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        eventually(lambda: way.upstream.asked)
    eventually(lambda: way.upstream.open == 0, patience=1.0)


@pytest.mark.parametrize("path", ["/chat/completions", "/proxy/big"])
def test_a_slow_reader_slows_the_endpoint_down(way: Way, path: str) -> None:
    """What nobody reads is not fetched: some buffers on the way fill up, and then the endpoint waits."""
    piece = b"data: " + b"x" * 65_536 + b"\n\n"
    way.upstream.endless(chat_events("a")[0], piece)
    with _open(way, path) as answer:
        assert answer.read(5)
        sent = -1
        while sent != (sent := way.upstream.sent):
            threading.Event().wait(0.1)  # for what is to stay as it is there is nothing to wait for
        assert sent < 32 * 1024 * 1024
        answer.read(sent)  # and it goes on as soon as somebody reads
        eventually(lambda: way.upstream.sent > sent)
    eventually(lambda: way.upstream.open == 0)


@pytest.mark.behaviour("TMO-02")
def test_a_time_limit_does_not_cut_a_stream_that_has_begun(way: Way) -> None:
    way.upstream.slow(*chat_events("a", "b"), wait=0.05)
    found = way.named(request_timeout="100").chat(stream=True)
    assert (found.status, found.body) == (200, b"".join(chat_events("a", "b")))
