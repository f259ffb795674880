"""The form in which a client sends a file (RFC 7578): its fields, and where its file lies.

What must live here: taking the body apart, without a copy; and a form as vendors take it. What must not: what is in the
file.
"""

import re
import secrets

import msgspec

from loomgate.errors import ApiError
from loomgate.providers.jobs.shapes import known, required
from loomgate.providers.operation import Asked, refused

_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb';\s*name="([^"\r\n]*)"', re.IGNORECASE)
_FILENAME = re.compile(rb';\s*filename="([^"\r\n]*)"', re.IGNORECASE)
_MOST_PARTS, _LONGEST_FIELD = 100, 64 * 1024
_NAMES = frozenset({"file", "purpose"})


class Uploaded(msgspec.Struct, frozen=True):
    """A file as it was sent: ``content`` is a view of the request's body."""

    content: memoryview
    filename: str
    purpose: str


def uploaded(asked: Asked, vendor: str, purposes: tuple[str, ...]) -> Uploaded:
    """The form's file. Raises a 400 `ApiError` for a form without one, or with what the vendor has no place for."""
    boundary = _BOUNDARY.search(asked.headers.get("content-type", ""))
    if asked.content_type != "multipart/form-data" or boundary is None:
        raise ApiError(400, "Expected a multipart/form-data body with a file and its purpose.", code="invalid_value")
    fields: dict[str, str] = {}
    file: tuple[memoryview, str] | None = None
    for head, content in _parts(asked.body, b"--" + boundary[1].encode("latin-1", "replace")):
        disposition = next((line for line in head.split(b"\r\n") if line[:19].lower() == b"content-disposition"), b"")
        named = _NAME.search(disposition)
        name = named[1].decode("utf-8", "replace") if named else ""
        filename = _FILENAME.search(disposition)
        if filename is not None and name == "file":
            file = content, filename[1].decode("utf-8", "replace").replace("\\", "/").rpartition("/")[2]
        elif len(content) <= _LONGEST_FIELD:
            fields[name] = bytes(content).decode("utf-8", "replace")
    known(fields, _NAMES, vendor)
    if file is None:
        raise ApiError(400, "Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
    given = {"purpose": fields.get("purpose") or asked.headers.get("x-portkey-file-purpose")}
    purpose = required(given, "purpose")
    if purpose not in purposes:
        expected = " or ".join(f"'{each}'" for each in purposes)
        raise refused("purpose", f"{expected} for the provider '{vendor}'", f"'{purpose[:50]}'")
    size = asked.headers.get("x-portkey-file-upload-size", str(len(file[0])))
    if size != str(len(file[0])):
        raise refused("x-portkey-file-upload-size", f"the file's {len(file[0])} bytes", f"'{size[:20]}'")
    return Uploaded(file[0], file[1] or "file.jsonl", purpose)


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
    raise ApiError(400, "The request body is not a multipart form with an end.", code="invalid_value")


def multipart(name: str, filename: str, data: bytes) -> tuple[str, bytes]:
    """A form that has one file: its content type, and the body."""
    mark = "form-" + secrets.token_hex(16)
    disposition = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"'
    head = f"--{mark}\r\n{disposition}\r\nContent-Type: application/jsonl\r\n\r\n"
    return f"multipart/form-data; boundary={mark}", b"".join((head.encode(), data, f"\r\n--{mark}--\r\n".encode()))
