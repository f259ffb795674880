"""AWS event streams from bytes, incrementally: however the bytes are split, the same frames come out.

What must live here: the binary framing of ``application/vnd.amazon.eventstream`` (lengths, checksums, typed headers).
What must not: what a frame means.

A frame is, big-endian: its length (4 bytes), the length of its headers (4), the CRC-32 of these 8 (4), the headers,
the payload, the CRC-32 of all before (4). A header is the length of its name (1), the name, a type (1), the value.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from loomgate.errors import ProviderError

HeaderValue = bool | int | bytes | str

_PRELUDE = struct.Struct(">III")
_CRC = struct.Struct(">I")
_AROUND = _PRELUDE.size + _CRC.size
# Header types whose values have a fixed size; 0 and 1 are true and false, 6 and 7 bytes and text with a length before.
_INTEGERS = {2: struct.Struct(">b"), 3: struct.Struct(">h"), 4: struct.Struct(">i"), 5: struct.Struct(">q")}
_INTEGERS[8] = _INTEGERS[5]  # a time: milliseconds since 1970
_LENGTH = struct.Struct(">H")
_UUID = 9


class Frame(NamedTuple):
    """One message: its headers by name, and its payload."""

    headers: dict[str, HeaderValue]
    payload: bytes


class FrameParser:
    """Feed bytes, get frames. ``limit`` bounds a frame, in bytes (AWS: 24 MiB and the headers)."""

    def __init__(self, limit: int = 25 * 1024 * 1024) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._checked = False  # whether the prelude at the front of the rest is known to be intact

    @property
    def pending(self) -> bool:
        """Whether a frame has begun that is not complete."""
        return bool(self._rest)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take the next bytes and give the frames they complete, one by one.

        Raises `ProviderError` ``malformed`` at the first frame whose checksums or lengths do not fit, as early as
        that can be told; the frames before it have been given then.
        """
        self._rest += data
        while len(self._rest) >= _PRELUDE.size:
            length, headers, crc = _PRELUDE.unpack_from(self._rest)
            if not self._checked:
                if zlib.crc32(self._rest[:8]) != crc:
                    raise _broken("it does not begin with the checksum of its lengths")
                if length < _AROUND + headers:
                    raise _broken("its lengths contradict each other")
                if length > self._limit:
                    raise _broken(f"it has more than {self._limit} bytes")
                self._checked = True
            if len(self._rest) < length:
                return
            frame = bytes(self._rest[:length])
            del self._rest[:length]
            self._checked = False
            body = length - _CRC.size
            if zlib.crc32(frame[:body]) != _CRC.unpack_from(frame, body)[0]:
                raise _broken("its checksum is wrong")
            start = _PRELUDE.size + headers
            yield Frame(_headers(frame[_PRELUDE.size : start]), frame[start:body])


def _headers(data: bytes) -> dict[str, HeaderValue]:
    found: dict[str, HeaderValue] = {}
    at = 0
    try:
        while at < len(data):
            end = at + 1 + data[at]
            name, kind = data[at + 1 : end].decode(), data[end]
            at = end + 1
            if kind in (0, 1):
                value: HeaderValue = kind == 0
            elif kind in (6, 7):
                at += _LENGTH.size
                end = at + _LENGTH.unpack_from(data, at - _LENGTH.size)[0]
                value = data[at:end] if kind == 6 else data[at:end].decode()
                at = end
            elif kind == _UUID:
                value = data[at : at + 16]
                at += 16
            else:
                layout = _INTEGERS[kind]
                value = layout.unpack_from(data, at)[0]
                at += layout.size
            if name in found:
                raise _broken(f"it has the header {name!r} twice")
            found[name] = value
    except (LookupError, struct.error, UnicodeDecodeError):
        at = -1
    if at != len(data):
        raise _broken("its headers cannot be read")
    return found


def _broken(why: str) -> ProviderError:
    return ProviderError("malformed", f"The endpoint sent a frame that is not of an AWS event stream: {why}.")
