"""Whole answers from streamed ones: what the cache keeps and guardrails look at.

What must live here: reading a stream that goes to a client, in the format the client reads. What must not: changing it.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import msgspec

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.gateway.call import Answer, Fields, Request
from loomgate.gateway.fronts import FRONTS
from loomgate.gateway.fronts.front import About
from loomgate.providers.anthropic import MessageDecoder
from loomgate.providers.dialect import Decoder
from loomgate.providers.openai import AnswerDecoder
from loomgate.wire.chat import Chunk, Finish
from loomgate.wire.ids import new_id

T = TypeVar("T")

_decode = msgspec.json.Decoder(dict).decode
_DECODERS: dict[str, Callable[[], Decoder]] = {
    "chat": AnswerDecoder,
    "complete": AnswerDecoder,
    "messages": MessageDecoder,
}


def whole_body(answer: Answer) -> Fields | None:
    """The JSON object of a whole answer, or None for anything else."""
    if not answer.body:
        return None
    try:
        return _decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def about_of(request: Request, answer: Answer) -> About:
    """What the pieces of an answer do not say about it."""
    return About(
        id=new_id("chatcmpl"),
        created=clock.timestamp(),
        model=answer.model,
        provider=answer.provider,
        strict=request.naming.strict,
        asked=request.fields if request.chat is None else {},
    )


def read_whole(request: Request, data: bytes) -> list[Chunk] | None:
    """The chunks of a streamed answer (or a whole one) in the client's format; None if it is not complete or has
    parts that chunks cannot hold."""
    made = _DECODERS.get(request.endpoint.name)
    if made is None or request.fields.get("n") not in (None, 1):
        return None
    decoder = made()
    try:
        chunks = [*decoder.feed(data), *decoder.end()]
    except ProviderError:
        return None
    return chunks if chunks and isinstance(chunks[-1], Finish) else None


async def collect(answer: Answer) -> tuple[list[bytes], list[Chunk]]:
    """All that is still to come of a streamed answer. Raises `ProviderError` when it breaks."""
    pieces: list[bytes] = []
    chunks: list[Chunk] = []
    try:
        if answer.stream is not None:
            pieces = [piece async for piece in answer.stream]
        elif answer.chunks is not None:
            chunks = [chunk async for chunk in answer.chunks]
    finally:
        await answer.close()
    return pieces, chunks


def gathered(request: Request, answer: Answer, pieces: list[bytes], chunks: list[Chunk]) -> Fields | None:
    """The whole answer that ``pieces`` or ``chunks`` make, in the client's format."""
    found = chunks or read_whole(request, b"".join(pieces))
    if not found:
        return None
    return FRONTS[request.endpoint.name].whole(found, about_of(request, answer))


async def led(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """``first``, then ``rest``, which is closed with it."""
    try:
        yield first
        async for one in rest:
            yield one
    finally:
        await rest.aclose()


async def chunks_of(found: list[Chunk]) -> AsyncGenerator[Chunk, None]:
    """``found`` as an answer's chunks."""
    for chunk in found:
        yield chunk


async def pieces_of(found: list[bytes]) -> AsyncGenerator[bytes, None]:
    """``found`` as an answer's stream."""
    for piece in found:
        yield piece


def overheard(
    answer: Answer, most: int, heard: Callable[[list[bytes], list[Chunk]], Awaitable[bytes | None]]
) -> Answer:
    """``answer`` as it is; after its regular end ``heard`` gets what went by, if that was at most ``most`` bytes.

    What ``heard`` gives back is added to a stream of bytes.
    """
    if answer.stream is not None:
        answer.stream = _overheard_bytes(answer.stream, most, heard)
    elif answer.chunks is not None:
        answer.chunks = _overheard_chunks(answer.chunks, heard)
    return answer


async def _overheard_bytes(
    stream: AsyncGenerator[bytes, None], most: int, heard: Callable[[list[bytes], list[Chunk]], Awaitable[bytes | None]]
) -> AsyncGenerator[bytes, None]:
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in stream:
            size += len(piece)
            if size <= most:
                pieces.append(piece)
            elif pieces:
                pieces.clear()
            yield piece
        if size <= most and (more := await heard(pieces, [])):
            yield more
    finally:
        await stream.aclose()


async def _overheard_chunks(
    chunks: AsyncGenerator[Chunk, None], heard: Callable[[list[bytes], list[Chunk]], Awaitable[bytes | None]]
) -> AsyncGenerator[Chunk, None]:
    found: list[Chunk] = []
    try:
        async for chunk in chunks:
            found.append(chunk)
            if isinstance(chunk, Finish):
                await heard([], found)  # before it goes out: nobody asks for more after the last one
            yield chunk
    finally:
        await chunks.aclose()
