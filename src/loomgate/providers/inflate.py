"""Bodies that come compressed although that was not asked for.

What must live here: unpacking them piece by piece, with bounded growth. What must not: which bodies those are.
"""

import zlib

from loomgate.errors import ProviderError

# Bytes that a compressed body gives at a time.
_INFLATED = 256 * 1024


class Inflate:
    """Decompresses a body with bounded growth: a piece may stand for a thousand times as much."""

    def __init__(self, coding: bytes) -> None:
        self._gzip = coding != b"deflate"
        self._stream = zlib.decompressobj(31)
        self._begun = False
        self._tail = b""  # not yet used
        self._full = False  # whether the last of it may stand for more

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._tail += data

    def more(self) -> bytes:
        """Up to 256 KiB of what they stand for; ``b""`` when all of them are used."""
        while self._tail or self._full:
            if not self._begun and not self._gzip:
                if len(self._tail) < 2:
                    break
                # Many send deflate without the header that belongs there (RFC 1950 section 2.2).
                header = self._tail[0] & 15 == 8 and int.from_bytes(self._tail[:2]) % 31 == 0
                self._stream = zlib.decompressobj(15 if header else -15)
            self._begun = True
            if self._stream.eof:
                if not self._gzip or not self._tail.strip(b"\0"):
                    self._tail = b""  # padding
                    break
                self._stream = zlib.decompressobj(31)  # one may follow the other (RFC 1952 section 2.2)
            data, self._tail = self._tail, b""
            try:
                out = self._stream.decompress(data, _INFLATED)
            except zlib.error:
                raise ProviderError("malformed", "The endpoint's compressed answer cannot be read.") from None
            self._full = len(out) >= _INFLATED and not self._stream.eof
            self._tail = self._stream.unconsumed_tail or self._stream.unused_data
            if out:
                return out
        return b""

    def end(self) -> None:
        """Raises `ProviderError` ``cut`` when the compressed data is not complete."""
        if (self._begun or self._tail) and not self._stream.eof:
            raise ProviderError("cut", "The connection to the endpoint broke within the answer.")
