"""Files of lines, one JSON object each: OpenAI's requests to the vendor's, and the vendor's results to OpenAI's.

What must live here: taking a stream apart into lines and putting it together again, a bounded part at a time, and what
OpenAI's lines look like. What must not: a vendor's lines.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from loomgate.errors import ApiError, ProviderError
from loomgate.providers.operation import Fields

_PIECE = 256 * 1024  # bytes of a file that are worked on at a time
_LONGEST = 32 * 1024 * 1024  # bytes of one line
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"

encode = msgspec.json.Encoder().encode

Convert = Callable[[int, bytes], bytes | None]  # a line's number (from 1) and itself, to what stands in its place


class Line(msgspec.Struct):
    """One request of a batch."""

    custom_id: str
    url: str = CHAT
    method: str = "POST"
    body: dict[str, Any] = {}


_read = msgspec.json.Decoder(Line).decode
_read_object = msgspec.json.Decoder(dict[str, Any]).decode


def wrong(number: int, why: str) -> ApiError:
    """The 400 for a line of a client's file."""
    return ApiError(400, f"Line {number} of the file: {why}", param="file", code="invalid_line")


def line_of(number: int, raw: bytes, *urls: str) -> Line:
    """A client's line, which must be for one of ``urls``. Raises a 400 `ApiError`."""
    try:
        found = _read(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise wrong(number, f"it is not a request of a batch: {error}") from None
    if found.url not in urls or found.method != "POST":
        raise wrong(number, f"expected POST {' or '.join(urls)}, but got {found.method[:20]} {found.url[:100]}.")
    if found.body.get("stream"):
        raise wrong(number, "expected a request without 'stream': its answer is a line of a file.")
    return found


def object_of_line(number: int, raw: bytes) -> Fields:
    """A client's line as an object. Raises a 400 `ApiError`."""
    try:
        return _read_object(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise wrong(number, f"it is not a JSON object: {error}") from None


def refusing(number: int, convert: Callable[[], bytes]) -> bytes:
    """What ``convert`` gives; a refusal of what is in the line names the line."""
    try:
        return convert()
    except ApiError as error:
        if error.code == "invalid_line":
            raise
        raise wrong(number, error.message) from None
    except ProviderError as error:
        raise wrong(number, error.message) from None


def result(id: str, custom_id: str, body: Fields) -> bytes:
    """A line of an output file, for an answer."""
    response = {"status_code": 200, "request_id": id, "body": body}
    return encode({"id": id, "custom_id": custom_id, "response": response, "error": None})


def failed(id: str, custom_id: str, code: object, message: str) -> bytes:
    """The same for a request that failed."""
    error = {"code": str(code or "failed"), "message": message or "The request failed."}
    return encode({"id": id, "custom_id": custom_id, "response": None, "error": error})


# --- streams ---------------------------------------------------------------------------------------------------------


async def converted(pieces: AsyncIterator[bytes], convert: Convert) -> AsyncGenerator[bytes, None]:
    """Every line of ``pieces`` as ``convert`` has it, each with its end; empty ones are left out. The work is done in
    a thread, a part at a time, so that nobody waits for a large file. Raises `ProviderError` for a line without end."""
    rest, number = b"", 0
    async for piece in pieces:
        head, mark, tail = piece.rpartition(b"\n")
        if not mark:
            rest += piece
            if len(rest) > _LONGEST:
                raise ProviderError("malformed", f"A line of the file is longer than {_LONGEST >> 20} MiB.")
            continue
        whole, rest = (rest + head).split(b"\n"), tail
        if made := await asyncio.to_thread(_all, whole, number, convert):
            yield made
        number += len(whole)
    if rest.strip() and (made := await asyncio.to_thread(_all, [rest], number, convert)):
        yield made


def _all(lines: list[bytes], before: int, convert: Convert) -> bytes:
    made = (convert(number, line) for number, line in enumerate(lines, before + 1) if line.strip())
    return b"".join(line + b"\n" for line in made if line is not None)


async def viewed(content: memoryview) -> AsyncGenerator[bytes, None]:
    """The pieces of what is here as a whole."""
    for piece in _cut(content):
        yield piece


def _cut(content: memoryview) -> Iterator[bytes]:
    for at in range(0, len(content), _PIECE):
        yield bytes(content[at : at + _PIECE])


async def parts(pieces: AsyncGenerator[bytes, None], size: int) -> AsyncGenerator[tuple[bytes, bool], None]:
    """``pieces`` as parts of exactly ``size`` bytes, the last one shorter (maybe empty), each with whether it is the
    last."""
    held = bytearray()
    async with aclosing(pieces):
        async for piece in pieces:
            held += piece
            while len(held) > size:
                yield bytes(held[:size]), False
                del held[:size]
    yield bytes(held), True
