"""The one field of a multipart form that routing looks at: ``model`` (AUTH-02 f, for audio and picture edits).

What must live here: finding it in the bytes, and putting another in its place. What must not: anything else of the
form, which passes as it is.
"""

import re
from functools import lru_cache

_BOUNDARY = re.compile(r'boundary="?([^";,\s]{1,70})"?', re.IGNORECASE)
_LONGEST = 1000  # bytes of a model's name


def model_in(body: bytes, content_type: str) -> str | None:
    """The form's ``model``, if it has one; ``content_type`` is the header with its boundary (RFC 7578)."""
    found = _find(body, content_type)
    if found is None:
        return None
    try:
        return found[1].decode().strip() or None
    except UnicodeDecodeError:
        return None


def with_model(body: bytes, content_type: str, model: str) -> bytes:
    """``body`` with ``model`` in the place of the one it has; every other byte as it was."""
    found = _find(body, content_type)
    return body if found is None else body[: found.start(1)] + model.encode() + body[found.end(1) :]


def _find(body: bytes, content_type: str) -> re.Match[bytes] | None:
    boundary = _BOUNDARY.search(content_type)
    return None if boundary is None else _part(boundary[1]).search(body)


@lru_cache(maxsize=256)
def _part(boundary: str) -> re.Pattern[bytes]:
    mark = re.escape(b"--" + boundary.encode("latin-1", "replace"))
    named = rb'content-disposition:[^\r\n]*;\s*name="?model"?(?=[;\r])[^\r\n]*\r\n'
    other = rb"(?:[^\r\n]{1,1000}\r\n){0,5}?"
    return re.compile(
        mark + rb"\r\n" + other + named + other + rb"\r\n([^\r\n]{0,%d})\r\n" % _LONGEST + mark, re.IGNORECASE
    )
