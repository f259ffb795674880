"""Bodies in: JSON to a request type, or the 400 that names what is wrong with it.

`decode` is the hot path. A body that it refuses is looked at a second time, by `loomgate.http.refusal`, which finds
the first mistake in the words of BEHAVIOUR section 8. What types cannot say is in `loomgate.http.checks`.
"""

from collections.abc import AsyncGenerator, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from starlette.types import Receive

from loomgate.errors import ApiError, bad_request
from loomgate.http import refusal
from loomgate.http.faults import too_large

T = TypeVar("T")

# Numbers too large for a float must not hide a clearer mistake elsewhere: the second look reads them as infinite.
_raw = msgspec.json.Decoder(float_hook=float)


@cache
def _decoder(type: type[Any]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type)


def decode(body: bytes, type: type[T]) -> T:
    """``body`` as ``type``; an empty body is an empty object (BEHAVIOUR CONV-07).

    Raises a 400 `ApiError`: CONV-10 for what is not JSON (UTF-8, no NaN, no lone surrogates, no absurd nesting),
    else the first violation of ``type``. Of a key that is given twice, the last value counts.
    """
    if not body or body.isspace():
        body = b"{}"
    try:
        return _decoder(type).decode(body)
    except msgspec.ValidationError as error:
        raise _refused(body, type, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _not_json(error) from None


def _not_json(error: Exception) -> ApiError:
    match error:
        case RecursionError():
            why = "it is nested too deeply"
        case UnicodeDecodeError():
            why = "it is not UTF-8"
        case _:
            why = str(error)
    return bad_request(f"We could not parse the JSON body of your request. Expected a JSON object: {why}.")


def _refused(body: bytes, type: type[Any], error: msgspec.ValidationError) -> ApiError:
    try:
        value = _raw.decode(body)
    except msgspec.ValidationError:  # an integer of thousands of digits
        return bad_request(f"Invalid body: {error}.", code="invalid_value")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as malformed:
        return _not_json(malformed)
    return refusal.find(type, value) or bad_request(f"Invalid body: {error}.", code="invalid_value")


class Arriving:
    """A body that is not read beforehand: see `loomgate.providers.jobs.job.Source`."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self.spent = False
        self.failure: Exception | None = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes, once. Raises `Left`, and a 413 `ApiError` when it is larger than was said."""
        self.spent = True
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Left
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._limit:
                raise too_large(self._limit)
            more = message.get("more_body", False)
            if piece:
                yield piece


class Left(Exception):
    """The client went away before its request was read."""


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body. Raises a 413 `ApiError` as soon as it is known to be larger than ``limit`` bytes."""
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > limit:
        raise too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise Left
    if not message.get("more_body", False) and len(body) <= limit:
        return body
    pieces = [body]
    size = len(body)
    while message.get("more_body", False) and size <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        piece: bytes = message.get("body", b"")
        pieces.append(piece)
        size += len(piece)
    if size > limit:
        raise too_large(limit)
    return b"".join(pieces)


def arriving(receive: Receive, headers: Mapping[bytes, bytes], held: int, limit: int) -> Arriving | None:
    """The body of an upload that is larger than what is ``held``, by what its headers say; None for any other.

    Raises a 413 `ApiError` for one of more than ``limit`` bytes.
    """
    declared = int(headers.get(b"content-length", b"0"))
    if declared <= held:
        return None
    if declared > limit:
        raise too_large(limit)
    return Arriving(receive, limit)
