"""Endpoints that break, stall, and answer what is no answer: the client gets a documented error, or a broken stream."""

import gzip
import json
import logging
import threading
from collections.abc import Awaitable, Callable

import pytest

from tests.gateway_http.caller import (
    ANTHROPIC_START,
    EVENTS,
    OWN,
    Caller,
    Conversation,
    anthropic_event,
    chat,
    openai_event,
    part,
)
from tests.support.eventually import eventually
from tests.support.peer import Peer, answer
from tests.support.peer import Server as Endpoint
from tests.support.server import Server

Start = Callable[[Callable[[Peer], Awaitable[None]]], Endpoint]
BODY = chat(max_tokens=9)


def once(*pieces: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Say these and close the connection."""

    async def play(peer: Peer) -> None:
        if await peer.request() is not None:
            for piece in pieces:
                await peer.say(piece)

    return play


def split(asking: Conversation) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer that was read to its end."""
    with asking:
        head, _, body = asking.rest().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in pairs}, body


# --- streams that break ----------------------------------------------------------------------------------------------


@pytest.mark.behaviour("STM-10")
@pytest.mark.parametrize(
    ("path", "events"),
    [
        ("/chat/completions", EVENTS),
        ("/proxy/odd", EVENTS),
        ("/proxy/odd", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99999\r\n\r\n"),
    ],
)
def test_a_passed_stream_that_breaks_just_ends(
    caller: Caller, endpoint: Start, caplog: pytest.LogCaptureFixture, path: str, events: bytes
) -> None:
    data = openai_event("Once")
    upstream = endpoint(once(events, part(data) if events is EVENTS else data))
    status, _, body = split(caller.ask(path, chat(stream=True), caller.headers(upstream.url)))
    assert (status, data in body, b"[DONE]" in body) == (200, True, False)
    assert not body.endswith(b"0\r\n\r\n"), "a broken answer that looks whole"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    (record,) = caller.log()
    assert (record["response"]["status"], record["metrics"]["is_success"]) == (200, False)
    assert "broke" in record["loomgate"]["error"] or "closed" in record["loomgate"]["error"], record


@pytest.mark.behaviour("STM-07")
@pytest.mark.parametrize("how", ["cut", "garbage", "whole"])
def test_a_translated_stream_that_breaks_says_so(
    caller: Caller, endpoint: Start, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    more = {"cut": b"", "garbage": part(b"data: {nonsense\n\n"), "whole": b"0\r\n\r\n"}[how]
    upstream = endpoint(once(EVENTS, part(ANTHROPIC_START + anthropic_event("Once")), more))
    headers = caller.headers(upstream.url, "anthropic")
    status, _, body = split(caller.ask("/chat/completions", chat(stream=True, max_tokens=9), headers))
    assert (status, b"Once" in body, b'"error"' in body) == (200, True, True), body
    assert body.endswith(b"0\r\n\r\n")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    (record,) = caller.log()
    assert (record["response"]["status"], record["metrics"]["is_success"]) == (200, False)
    assert record["loomgate"]["error"], record


# --- no answer at all ------------------------------------------------------------------------------------------------

GARBAGE = {
    "closed": (b"", 503),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", 502),
    "another HTTP": (b"HTTP/9.9 200 OK\r\n\r\n", 502),
    "a status that is none": (b"HTTP/1.1 abc OK\r\n\r\n", 502),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 502),
    "a length that is none": (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", 502),
    "a header that never ends": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 3_000_000, 502),
    "a header that is none": (b"HTTP/1.1 200 OK\r\nnothing\r\n\r\n{}", 502),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{", 502),
    "a chunk that is none": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n", 502),
    "a chunk of no size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}", 502),
    "no gzip": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", 502),
    "half a gzip": (answer(gzip.compress(b'{"a":1}' * 99)[:30], "200 OK", "Content-Encoding: gzip"), 502),
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_what_is_no_answer(
    caller: Caller, endpoint: Start, caplog: pytest.LogCaptureFixture, provider: str, kind: str
) -> None:
    said, expected = GARBAGE[kind]
    upstream = endpoint(once(said))
    status, headers, body = split(caller.ask("/chat/completions", BODY, caller.headers(upstream.url, provider)))
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert "x-portkey-gateway-exception" not in headers
    if provider == "openai" and status == 200:
        assert kind in ("a header that is none", "no gzip", "half a gzip", "a chunk that is none", "a chunk of no size")
        return  # passed on as it came
    assert status in (expected, 502, 503), body
    told = json.loads(body)
    assert told["error"]["message"].startswith(f"{provider} error: ")
    assert OWN.encode() not in body


@pytest.mark.parametrize(
    "said", [b"[1]", b"{}", b"null", b"<html>", b"", b"\xff\xfe", b"[" * 100_000, b'{"choices":5}']
)
@pytest.mark.parametrize("provider", ["anthropic", "google", "cohere", "bedrock"])
def test_a_whole_answer_that_cannot_be_translated(
    caller: Caller, endpoint: Start, caplog: pytest.LogCaptureFixture, provider: str, said: bytes
) -> None:
    upstream = endpoint(once(answer(said, "200 OK", "Content-Type: application/json")))
    more = {"aws_access_key_id": "AKIA1", "aws_secret_access_key": "aws-secret", "aws_region": "us-east-1"}
    headers = caller.headers(upstream.url, provider, **(more if provider == "bedrock" else {}))
    status, headers, body = split(caller.ask("/chat/completions", BODY, headers))
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert status == 502, (status, body)
    assert json.loads(body)["error"]["message"]


# --- errors of odd forms ---------------------------------------------------------------------------------------------


def test_an_error_of_100_megabytes(caller: Caller, endpoint: Start) -> None:
    sent = 0
    left = threading.Event()

    async def play(peer: Peer) -> None:
        nonlocal sent
        if await peer.request() is None:
            return
        await peer.say(b"HTTP/1.1 500 Broken\r\nContent-Type: application/json\r\nContent-Length: 104857600\r\n\r\n")
        try:
            for _ in range(1600):
                await peer.say(b"x" * 65536)
                sent += 65536
        except ConnectionError:
            pass
        left.set()

    upstream = endpoint(play)
    status, _, body = split(caller.ask("/chat/completions", BODY, caller.headers(upstream.url)))
    assert status == 500
    assert len(body) < 200_000
    assert left.wait(5)
    assert sent < 50_000_000


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_compressed_errors(caller: Caller, endpoint: Start, provider: str, coding: str) -> None:
    import zlib

    said = json.dumps({"type": "error", "error": {"type": "odd", "message": "No more."}}).encode()
    packed = gzip.compress(said) if coding == "gzip" else zlib.compress(said)
    upstream = endpoint(once(answer(packed, "429 Too Many", f"Content-Encoding: {coding}")))
    status, headers, body = split(caller.ask("/chat/completions", BODY, caller.headers(upstream.url, provider)))
    assert (status, "content-encoding" in headers) == (429, False)
    assert json.loads(body)["error"]["message"] == f"{provider} error: No more."


def test_an_endpoint_that_stalls(caller: Caller, endpoint: Start) -> None:
    left = threading.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.gone()
        left.set()

    upstream = endpoint(play)
    headers = caller.headers(upstream.url, request_timeout="100")
    status, _, body = split(caller.ask("/chat/completions", BODY, headers))
    assert status == 408
    assert json.loads(body)["error"]["message"] == "Request exceeded the timeout sent in the request: 100ms"
    assert left.wait(5)


# --- connections are given back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["429 Slow", "500 Broken"])
@pytest.mark.parametrize("path", ["/proxy/odd", "/moderations"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_an_answer_that_is_not_used_is_let_go(
    gateway: Server, caller: Caller, endpoint: Start, path: str, status: str, kind: str
) -> None:
    async def play(peer: Peer) -> None:
        while await peer.request() is not None:
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
            await peer.say(head.encode() + part(b'{"error":{"message":"x"}}'))
            await peer.gone()  # the rest never comes

    upstream = endpoint(play)
    here = {"provider": "openai", "custom_host": upstream.url, "api_key": OWN}
    config = {"strategy": {"mode": "fallback"}, "targets": [here, {**here, "provider": "nobody"}]}
    headers = caller.headers("", "", config=json.dumps(config), request_timeout="200")
    with caller.ask(path, BODY, headers) as asking:
        asking.until(b"\r\n\r\n")
    eventually(lambda: not upstream.open, patience=5)
    transport = gateway.application.gateway._transport
    assert eventually(lambda: not transport._watches, patience=2)
