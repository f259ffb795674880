"""The form in which a client sends a file (RFC 7578): its fields, and where its file lies.

What must live here: taking the body apart, without a copy; and a form as vendors take it. What must not: what is in the
file.
"""

import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from loomgate.errors import ApiError
from loomgate.providers.jobs.job import Source, Task, too_large_for
from loomgate.providers.jobs.lines import viewed
from loomgate.providers.jobs.shapes import known, required
from loomgate.providers.operation import refused

_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb';\s*name="([^"\r\n]*)"', re.IGNORECASE)
_FILENAME = re.compile(rb';\s*filename="([^"\r\n]*)"', re.IGNORECASE)
_MOST_PARTS, _LONGEST_FIELD = 100, 64 * 1024
_NAMES = frozenset({"file", "purpose"})


class Uploaded(msgspec.Struct, frozen=True):
    """A file as it was sent: its ``pieces`` come once."""

    pieces: AsyncGenerator[bytes, None]
    filename: str
    purpose: str


async def uploaded(task: Task, purposes: tuple[str, ...], *, streams: bool = False) -> Uploaded:
    """The form's file. ``streams``: the vendor takes one whose length is not known beforehand.

    Raises a 400 `ApiError` for a form without one, or with what the vendor has no place for, and a 413 for one that
    would have to be held.
    """
    asked, vendor = task.asked, task.target.vendor.name
    boundary = _BOUNDARY.search(asked.headers.get("content-type", ""))
    if asked.content_type != "multipart/form-data" or boundary is None:
        raise ApiError(400, "Expected a multipart/form-data body with a file and its purpose.", code="invalid_value")
    mark = b"--" + boundary[1].encode("latin-1", "replace")
    size = asked.headers.get("x-portkey-file-upload-size")
    if task.source is not None:
        if not streams:
            raise too_large_for(vendor)
        fields, name, pieces = await _arriving(task.source, mark)
        pieces = _counted(pieces, size)
    else:
        fields, name, content = _held(asked.body, mark)
        if size not in (None, str(len(content))):
            raise _other_size(size)
        pieces = viewed(content)
    known(fields, _NAMES, vendor)
    purpose = required({"purpose": fields.get("purpose") or asked.headers.get("x-portkey-file-purpose")}, "purpose")
    if purpose not in purposes:
        expected = " or ".join(f"'{each}'" for each in purposes)
        raise refused("purpose", f"{expected} for the provider '{vendor}'", f"'{purpose[:50]}'")
    return Uploaded(pieces, name or "file.jsonl", purpose)


def _other_size(said: str | None) -> ApiError:
    return refused("x-portkey-file-upload-size", "the bytes of the file", f"'{str(said)[:20]}'")


async def _counted(pieces: AsyncGenerator[bytes, None], expected: str | None) -> AsyncGenerator[bytes, None]:
    size = 0
    async with aclosing(pieces):
        async for piece in pieces:
            size += len(piece)
            yield piece
    if expected not in (None, str(size)):
        raise _other_size(expected)


def _described(head: bytes) -> tuple[str, str | None]:
    """The name of a part, and that of the file in it."""
    disposition = next((line for line in head.split(b"\r\n") if line[:19].lower() == b"content-disposition"), b"")
    named, filename = _NAME.search(disposition), _FILENAME.search(disposition)
    name = named[1].decode("utf-8", "replace") if named else ""
    if filename is None or name != "file":
        return name, None
    return name, filename[1].decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]


def _held(body: bytes, mark: bytes) -> tuple[dict[str, str], str, memoryview]:
    """The fields of a form that is here as a whole, and its file."""
    fields: dict[str, str] = {}
    file: tuple[str, memoryview] | None = None
    for head, content in _parts(body, mark):
        name, filename = _described(head)
        if filename is not None:
            file = filename, content
        elif len(content) <= _LONGEST_FIELD:
            fields[name] = bytes(content).decode("utf-8", "replace")
    if file is None:
        raise _no_file()
    return fields, *file


def _no_file() -> ApiError:
    return ApiError(400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter")


def _endless() -> ApiError:
    return ApiError(400, "The request body is not a multipart form with an end.", code="invalid_value")


async def _arriving(source: Source, mark: bytes) -> tuple[dict[str, str], str, AsyncGenerator[bytes, None]]:
    """The fields in front of the file of a form that is on its way, and the file. What is behind it is not known by
    then, and not looked at."""
    stream, held, fields = source.pieces(), bytearray(), dict[str, str]()
    at = 0
    while len(held) <= 2 * _LONGEST_FIELD:
        start = held.find(mark, at)
        split = held.find(b"\r\n\r\n", start) if start >= 0 else -1
        if start >= 0 and held.startswith(b"--", start + len(mark)):
            raise _no_file()
        name, filename = _described(bytes(held[start + len(mark) : split])) if split >= 0 else ("", None)
        if filename is not None:
            return fields, filename, _content(stream, held[split + 4 :], b"\r\n" + mark)
        end = held.find(b"\r\n" + mark, split) if split >= 0 else -1
        if end >= 0:
            fields[name] = bytes(held[split + 4 : end]).decode("utf-8", "replace")
            at = end + 2
            continue
        piece = await anext(stream, b"")
        if not piece:
            raise _endless()
        held += piece
    raise _no_file()


async def _content(stream: AsyncGenerator[bytes, None], held: bytearray, tail: bytes) -> AsyncGenerator[bytes, None]:
    """What is in front of ``tail``."""
    async with aclosing(stream):
        while (end := held.find(tail)) < 0:
            if (ready := len(held) - len(tail)) > 0:
                yield bytes(held[:ready])
                del held[:ready]
            piece = await anext(stream, b"")
            if not piece:
                raise _endless()
            held += piece
        if end:
            yield bytes(held[:end])
        async for _ in stream:
            pass


def _parts(body: bytes, mark: bytes) -> list[tuple[bytes, memoryview]]:
    """The head and the content of each part. Raises a 400 `ApiError` for a form that has no end."""
    view = memoryview(body)
    made: list[tuple[bytes, memoryview]] = []
    at = body.find(mark)
    while at >= 0 and len(made) < _MOST_PARTS:
        at += len(mark)
        if body[at : at + 2] == b"--":
            return made
        split = body.find(b"\r\n\r\n", at)
        end = body.find(b"\r\n" + mark, split)
        if split < 0 or end < 0:
            break
        content = view[split + 4 : max(end, split + 4)]
        made.append((body[at:split], content))
        at = end + 2
    raise _endless()


def multipart(name: str, filename: str, data: bytes) -> tuple[str, bytes]:
    """A form that has one file: its content type, and the body."""
    mark = "form-" + secrets.token_hex(16)
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'
    head = f"--{mark}\r\n{disposition}\r\nContent-Type: application/jsonl\r\n\r\n"
    return f"multipart/form-data; boundary={mark}", b"".join((head.encode(), data, f"\r\n--{mark}--\r\n".encode()))
