"""The load generator must notice what would make its figures wrong; the upstream must speak OpenAI's wire form."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count

import msgspec
import pytest
from bench import upstream
from bench.load import Answer, BadMeasurement, Load, Result, drive, request

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ok(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers, "", ""]).encode() + body


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A server of our own on a free port; ``handler`` gets each connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def measured(handler: Handler, **fields: object) -> Result:
    """Drive a load of GETs against ``handler``."""

    async def go() -> Result:
        async with serving(handler) as port:
            given = {
                "request": lambda _: request("GET", "/"),
                "check": lambda _: None,
                "connections": 4,
                "seconds": 5.0,
            }
            return await drive(Load(port=port, **(given | fields)))

    return asyncio.run(go())


async def head(reader: asyncio.StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n")


def answering(make: Callable[[int], bytes]) -> Handler:
    """Answers every request with the bytes that ``make`` gives for its number."""
    numbers = count()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            writer.write(make(next(numbers)))

    return handler


def test_counts_and_agrees_with_littles_law() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            await asyncio.sleep(0.002)
            writer.write(ok(b"{}"))

    result = measured(slow, count=400)
    assert result.answers == len(result.samples) == 400
    assert result.p50 >= 2
    assert result.p99 >= result.p50
    assert 0.9 < result.little < 1.05
    assert result.rate * result.mean / 1e3 == pytest.approx(4, rel=0.1)


def test_a_status_other_than_200_ends_it() -> None:
    with pytest.raises(BadMeasurement, match="status 500"):
        measured(answering(lambda n: b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"), count=10)


def test_an_id_that_comes_twice_ends_it() -> None:
    with pytest.raises(BadMeasurement, match="came in two answers"):
        measured(answering(lambda n: ok(b"{}", f"x-request-id: req_{n % 7}")), count=100)

    def own_id(answer: Answer) -> bytes:
        return bytes(answer.body)

    with pytest.raises(BadMeasurement, match="came in two answers"):
        measured(answering(lambda n: ok(b"%d" % (n % 7))), check=own_id, count=100)
    assert measured(answering(lambda n: ok(b"%d" % n)), check=own_id, count=100).answers == 100


def test_a_connection_that_hangs_ends_it() -> None:
    numbers = count()

    async def one_hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            if next(numbers) == 20:
                await reader.read()
            writer.write(ok(b"{}"))

    with pytest.raises(BadMeasurement, match="1 of 4 connections hang"):
        measured(one_hangs, seconds=0.2, grace=0.2)


def test_an_answer_that_breaks_off_ends_it() -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort")

    with pytest.raises(BadMeasurement, match="broke in the middle"):
        measured(breaks, count=10)


def test_bytes_that_nobody_asked_for_end_it() -> None:
    with pytest.raises(BadMeasurement, match=r"to no request|after the end"):
        measured(answering(lambda n: ok(b"{}") + ok(b"{}")), count=50)


def test_a_check_that_fails_ends_it() -> None:
    def check(answer: Answer) -> None:
        raise BadMeasurement("wrong page")

    with pytest.raises(BadMeasurement, match="wrong page"):
        measured(answering(lambda n: ok(b"{}")), check=check, count=10)


def test_nobody_listens() -> None:
    async def go() -> None:
        async with serving(answering(lambda n: ok(b""))) as port:
            pass
        await drive(Load(port=port, request=lambda _: b"", check=lambda _: None, connections=1, count=1))

    with pytest.raises(BadMeasurement, match="cannot connect"):
        asyncio.run(go())


def test_a_server_that_closes_after_each_answer_is_measured_too() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(ok(b"{}", "connection: close"))

    result = measured(closes, count=100)
    assert (result.answers, result.reconnects) == (100, 100)


def test_first_token() -> None:
    async def late_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nto")
            await writer.drain()
            await asyncio.sleep(0.001)
            writer.write(b"ken")
            await asyncio.sleep(0.05)
            writer.write(b" end")

    result = measured(late_end, count=8, connections=2, marker=b"token")
    assert result.first_p99 is not None
    assert result.first_p99 < 40 < result.p50
    with pytest.raises(BadMeasurement, match="no b'never'"):
        measured(late_end, count=8, connections=2, marker=b"never")


def chat(**fields: object) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields)


def events(answer: bytes) -> list[bytes]:
    """The events of a chunked answer, each of which must be one HTTP chunk."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    found: list[bytes] = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        if not chunk:
            assert not rest
            return found
        assert chunk.startswith(b"data: ")
        assert chunk.endswith(b"\n\n")
        found.append(chunk[6:-2])


def test_upstream_streams_as_openai_does() -> None:
    answers = upstream.Answers()
    *chunks, end = events(answers.chat(chat(stream=True, stream_options={"include_usage": True})))
    assert end == b"[DONE]"
    decoded = [msgspec.json.decode(chunk) for chunk in chunks]
    *pieces, usage = decoded
    assert len({chunk["id"] for chunk in decoded}) == 1
    assert {chunk["object"] for chunk in decoded} == {"chat.completion.chunk"}
    assert all(chunk["usage"] is None for chunk in pieces)
    assert (usage["choices"], usage["usage"]) == ([], upstream.USAGE)
    (choices,) = zip(*(chunk["choices"] for chunk in pieces), strict=True)
    assert choices[0]["delta"]["role"] == "assistant"
    assert "".join(choice["delta"].get("content", "") for choice in choices) == upstream.REPLY
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    without = events(answers.chat(chat(stream=True)))
    assert len(without) == len(chunks)
    assert not any(b"usage" in chunk for chunk in without)
    assert msgspec.json.decode(without[0])["id"] != decoded[0]["id"]


def test_upstream_answers_without_a_stream_and_refuses_what_is_no_call() -> None:
    answers = upstream.Answers()
    top, _, body = answers.chat(chat()).partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in top
    completion = msgspec.json.decode(body)
    assert completion["choices"][0]["message"]["content"] == upstream.REPLY
    assert completion["usage"] == upstream.USAGE
    assert answers.chat(b'{"model":"m"}').startswith(b"HTTP/1.1 400 ")
    assert answers.served == 1
