"""Clients that go away, that read slowly, and a server that stops, in the middle of answers."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from loomgate.http.gateway import _send_stream  # pyright: ignore[reportPrivateUsage]
from tests.gateway_http.caller import ANTHROPIC_START, EVENTS, OWN, Caller, anthropic_event, chat, openai_event, part
from tests.support.eventually import eventually
from tests.support.peer import Peer
from tests.support.peer import Server as Endpoint
from tests.support.server import serving

Start = Callable[[Callable[[Peer], Awaitable[None]]], Endpoint]
DENYING = [{"default.contains": {"operator": "none", "words": ["forbidden"]}, "deny": True}]


class Playing:
    """An endpoint that begins a stream, waits for the other side to go away, and then says so."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.asked = threading.Event()
        self.left = threading.Event()

    async def __call__(self, peer: Peer) -> None:
        if await peer.request() is None:
            return
        self.asked.set()
        for piece in self._pieces:
            await peer.say(piece)
        await peer.gone()
        self.left.set()


WAYS = {
    "passed": ("openai", "/chat/completions", (EVENTS, part(openai_event("Once"))), {}),
    "proxied": ("openai", "/proxy/odd/path", (EVENTS, part(openai_event("Once"))), {}),
    "translated": ("anthropic", "/chat/completions", (EVENTS, part(ANTHROPIC_START + anthropic_event("Once"))), {}),
}


@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_leaves_a_stream_ends_the_call(caller: Caller, endpoint: Start, way: str, rudely: bool) -> None:
    provider, path, pieces, more = WAYS[way]
    play = Playing(*pieces)
    upstream = endpoint(play)
    asking = caller.ask(path, chat(stream=True, max_tokens=9), caller.headers(upstream.url, provider, **more))
    asking.until(b"Once")
    asking.leave(rudely=rudely)
    assert play.left.wait(5)
    (record,) = caller.log()
    assert record["response"]["status"] == 499, record


BEFORE: dict[str, tuple[str, str, tuple[bytes, ...], dict[str, str], dict[str, Any]]] = {
    "silent": ("openai", "/chat/completions", (), {}, {}),
    "silent, translated": ("anthropic", "/chat/completions", (), {}, {"max_tokens": 9}),
    "silent, proxied": ("openai", "/proxy/odd", (), {}, {}),
    "held back": (
        "openai",
        "/chat/completions",
        (EVENTS, part(openai_event("Once"))),
        {"default_output_guardrails": json.dumps(DENYING)},
        {"stream": True},
    ),
    "half a body": ("openai", "/chat/completions", (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",), {}, {}),
    "half a translated body": (
        "anthropic",
        "/chat/completions",
        (EVENTS, part(ANTHROPIC_START + anthropic_event("Once"))),
        {},
        {"max_tokens": 9},
    ),
}


@pytest.mark.parametrize("way", BEFORE)
def test_a_client_that_leaves_before_its_answer_ends_the_call(caller: Caller, endpoint: Start, way: str) -> None:
    provider, path, pieces, more, fields = BEFORE[way]
    play = Playing(*pieces)
    upstream = endpoint(play)
    asking = caller.ask(path, chat(**fields), caller.headers(upstream.url, provider, **more))
    assert play.asked.wait(5)
    asking.leave()
    assert play.left.wait(5), "the endpoint is still asked"
    (record,) = caller.log()
    assert record["response"]["status"] == 499, record


def test_a_client_that_leaves_between_two_tries(caller: Caller, endpoint: Start) -> None:
    async def play(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.say(b"HTTP/1.1 503 Busy\r\nRetry-After: 30\r\nContent-Length: 2\r\n\r\n{}")

    upstream = endpoint(play)
    retry = {"attempts": 5, "on_status_codes": [503], "use_retry_after_header": True}
    config = {"provider": "openai", "custom_host": upstream.url, "api_key": OWN, "retry": retry}
    asking = caller.ask("/chat/completions", chat(), caller.headers("", "", config=json.dumps(config)))
    eventually(lambda: upstream.requests)
    asking.leave()
    (record,) = caller.log()
    assert record["response"]["status"] == 499, record


# --- slow readers ---------------------------------------------------------------------------------------------------

_PIECE = 32 * 1024
_MANY = 2000  # pieces: 64 MB, far more than all buffers on the way


class Pouring:
    """An endpoint that sends as fast as it may; ``sent`` counts pieces."""

    def __init__(self, head: bytes, piece: bytes) -> None:
        self._head, self._piece = head, piece
        self.sent = 0
        self.left = threading.Event()

    async def __call__(self, peer: Peer) -> None:
        if await peer.request() is None:
            return
        peer.writer.transport.set_write_buffer_limits(high=65536)
        await peer.say(self._head)
        try:
            for _ in range(_MANY):
                await peer.say(self._piece)
                self.sent += 1
        except ConnectionError:
            pass
        self.left.set()


POURED = {
    "passed": ("openai", "/chat/completions", EVENTS, part(openai_event("x" * _PIECE))),
    "proxied": ("openai", "/proxy/big", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", part(b"x" * _PIECE)),
    "translated": (
        "anthropic",
        "/chat/completions",
        EVENTS + part(ANTHROPIC_START),
        part(anthropic_event("x" * _PIECE)),
    ),
}


@pytest.mark.parametrize("way", POURED)
def test_a_slow_reader_slows_the_endpoint(caller: Caller, endpoint: Start, way: str) -> None:
    provider, path, head, piece = POURED[way]
    play = Pouring(head, piece)
    upstream = endpoint(play)
    headers = caller.headers(upstream.url, provider)
    asking = caller.ask(path, chat(stream=True, max_tokens=9), headers, receive_buffer=65536)
    asking.until(b"xxx")
    seen = -1
    while seen != play.sent:  # until nothing more goes through
        seen = play.sent
        threading.Event().wait(0.2)
    assert seen * _PIECE < 16 * 1024 * 1024, "the endpoint was not held up"
    asking.leave()
    assert play.left.wait(5)
    (record,) = caller.log()
    assert record["response"]["status"] == 499, record


# --- the server stops -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_within_a_stream(
    tmp_path: Path, endpoint: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    monkeypatch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
    provider, path, pieces, more = WAYS[way]
    with serving(tmp_path / "data", key=True, drain_seconds=0.4) as server:
        caller = Caller(server.url, server.key or "")
        play = Playing(*pieces)
        upstream = endpoint(play)
        asking = caller.ask(path, chat(stream=True, max_tokens=9), caller.headers(upstream.url, provider, **more))
        with asking:
            asking.until(b"Once")
            server.stop()
            got = asking.rest()
        assert not got.endswith(b"0\r\n\r\n"), "a broken answer that looks whole"
        assert b"[DONE]" not in got
        assert play.left.wait(5)
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    with serving(tmp_path / "data", key=True) as server:
        (record,) = Caller(server.url, server.new_key("default")).log()
        assert record["response"]["status"] == 503, record
        assert "server was stopping" in record["loomgate"]["error"]


@pytest.mark.parametrize("way", BEFORE)
def test_a_stop_before_an_answer(tmp_path: Path, endpoint: Start, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
    provider, path, pieces, more, fields = BEFORE[way]
    with serving(tmp_path / "data", key=True, drain_seconds=0.2) as server:
        caller = Caller(server.url, server.key or "")
        play = Playing(*pieces)
        upstream = endpoint(play)
        with caller.ask(path, chat(**fields), caller.headers(upstream.url, provider, **more)) as asking:
            assert play.asked.wait(5)
            server.stop()
            assert b" 503 " in asking.rest().partition(b"\r\n")[0]
    with serving(tmp_path / "data", key=True) as server:
        (record,) = Caller(server.url, server.new_key("default")).log()
        assert record["response"]["status"] == 503, record
        assert "server was stopping" in record["loomgate"]["error"]


@pytest.mark.anyio
async def test_a_stop_while_the_client_reads_nothing_is_told_to_the_stream() -> None:
    told: list[BaseException] = []

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            yield b"Once"
        except BaseException as error:
            told.append(error)
            raise

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    sending = asyncio.create_task(_send_stream(send, 200, [], pieces()))
    await asyncio.sleep(0.01)
    sending.cancel("stop")
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [(type(error), error.args) for error in told] == [(asyncio.CancelledError, ("stop",))]


def test_a_stream_that_ends_in_time_is_whole(tmp_path: Path, endpoint: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
    go = threading.Event()

    async def play(peer: Peer) -> None:
        if await peer.request() is None:
            return
        await peer.say(EVENTS + part(openai_event("Once")))
        await asyncio.to_thread(go.wait, 5)
        await peer.say(part(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await peer.gone()

    with serving(tmp_path / "data", key=True, drain_seconds=5) as server:
        caller = Caller(server.url, server.key or "")
        upstream = endpoint(play)
        with caller.ask("/chat/completions", chat(stream=True), caller.headers(upstream.url)) as asking:
            asking.until(b"Once")
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            stopping.join(0.2)
            assert stopping.is_alive()
            go.set()
            assert asking.rest().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            stopping.join(5)
            assert not stopping.is_alive()
    with serving(tmp_path / "data", key=True) as server:
        (record,) = Caller(server.url, server.new_key("default")).log()
        assert record["response"]["status"] == 200, record
