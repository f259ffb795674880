"""Avro's object container files (specification 1.11), read as they come: one block at a time, values as JSON has them.

What must live here: this format, with the codecs that Python has (null, deflate). What must not: what the records mean.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import msgspec

from loomgate.errors import ProviderError

_MAGIC = b"Obj\x01"
_LONGEST = 64 * 1024 * 1024  # bytes of a block, packed or not, and of the header
_MOST_NAMES = 1000  # types that a schema declares
_MOST_EMPTY = 100_000  # items of an array that take no bytes

Read = Callable[["_Bytes"], Any]


class _Bytes:
    """Bytes to read from; a number or a text that is not there as a whole is an `EOFError`."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        if size < 0 or size > _LONGEST:
            raise _wrong()
        if self.at + size > len(self.data):
            raise EOFError
        self.at += size
        return bytes(self.data[self.at - size : self.at])

    def long(self) -> int:
        """A number of 64 bits: seven in each byte, least first, its sign in the last bit."""
        found, shift = 0, 0
        while True:
            byte = self.take(1)[0]
            found |= (byte & 127) << shift
            if byte < 128:
                return (found >> 1) ^ -(found & 1)
            shift += 7
            if shift > 63:
                raise _wrong()

    def text(self) -> str:
        try:
            return self.take(self.long()).decode()
        except UnicodeDecodeError:
            raise _wrong() from None


def _wrong(why: str = "it is not Avro") -> ProviderError:
    return ProviderError("malformed", f"The file of results cannot be read: {why}.")


class Container:
    """Reads one file: `feed` its bytes, then `end`."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._read: Read | None = None
        self._deflated = False
        self._sync = b""

    def feed(self, data: bytes) -> Iterator[Any]:
        """The values of the blocks that ``data`` completes. Raises `ProviderError` ``malformed``."""
        self._held += data
        if len(self._held) > _LONGEST + 1024:
            raise _wrong("a block is too long")
        source = _Bytes(self._held)
        done = 0
        try:
            if self._read is None:
                self._begin(source)
                done = source.at
            while source.at < len(source.data):
                count, packed = source.long(), source.take(source.long())
                if source.take(16) != self._sync:
                    raise _wrong("a block does not end where it says")
                done = source.at
                yield from self._block(count, packed)
        except EOFError:
            pass
        del self._held[:done]

    def end(self) -> None:
        """Raises `ProviderError` ``cut`` when the file is not complete."""
        if self._held or self._read is None:
            raise ProviderError("cut", "The file of results broke off.")

    def _begin(self, source: _Bytes) -> None:
        if source.take(4) != _MAGIC:
            raise _wrong()
        told: dict[str, bytes] = {}
        while count := source.long():
            if count < 0:
                source.long()
            for _ in range(abs(count)):
                name = source.text()
                told[name] = source.take(source.long())
        self._sync = source.take(16)
        codec = told.get("avro.codec", b"null")
        if codec not in (b"null", b"deflate"):
            raise _wrong(f"its codec is {codec[:20].decode('utf-8', 'replace')}")
        self._deflated = codec == b"deflate"
        try:
            schema = msgspec.json.decode(told["avro.schema"])
            self._read = _reader(schema, {})
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError):
            raise _wrong("its schema cannot be read") from None

    def _block(self, count: int, packed: bytes) -> Iterator[Any]:
        assert self._read is not None
        if self._deflated:
            inflate = zlib.decompressobj(-15)
            try:
                packed = inflate.decompress(packed, _LONGEST)
            except zlib.error:
                raise _wrong("a block cannot be decompressed") from None
            if inflate.unconsumed_tail:
                raise _wrong("a block is too long")
        source = _Bytes(packed)
        try:
            for _ in range(count):
                yield self._read(source)
        except (EOFError, RecursionError, IndexError, struct.error):
            raise _wrong("a record breaks off") from None


# --- schemas ---------------------------------------------------------------------------------------------------------


def _reader(schema: Any, names: dict[str, Read]) -> Read:
    """What reads a value of ``schema``. ``names``: the types that were declared before it."""
    if isinstance(schema, list):
        choices = [_reader(each, names) for each in cast("list[Any]", schema)]
        return lambda source: choices[_index(source)](source)
    if isinstance(schema, str):
        return _PLAIN[schema] if schema in _PLAIN else names[schema]
    kind: Any = schema["type"]
    if not isinstance(kind, str) or kind in _PLAIN:
        return _reader(kind, names)
    if kind == "array":
        item = _reader(schema["items"], names)
        return lambda source: list(_blocks(source, item))
    if kind == "map":
        value = _reader(schema["values"], names)
        return lambda source: dict(_blocks(source, lambda inner: (inner.text(), value(inner))))
    return _named(schema, kind, names)


def _named(schema: dict[str, Any], kind: str, names: dict[str, Read]) -> Read:
    if len(names) >= _MOST_NAMES:
        raise _wrong("its schema is too long")
    fields: list[tuple[str, Read]] = []
    made: Read
    if kind == "record":

        def record(source: _Bytes) -> dict[str, Any]:
            return {name: read(source) for name, read in fields}

        made = record
    elif kind == "enum":
        symbols = [str(symbol) for symbol in schema["symbols"]]
        made = lambda source: symbols[_index(source)]  # noqa: E731
    elif kind == "fixed":
        size = int(schema["size"])
        made = lambda source: source.take(size)  # noqa: E731
    else:
        raise KeyError(kind)
    for name in (str(schema["name"]), f"{schema.get('namespace', '')}.{schema['name']}"):
        names[name] = made
    for field in schema["fields"] if kind == "record" else ():
        fields.append((str(field["name"]), _reader(field["type"], names)))
    return made


def _index(source: _Bytes) -> int:
    found = source.long()
    if found < 0:
        raise _wrong()
    return found


def _blocks(source: _Bytes, read: Read) -> Iterator[Any]:
    """The items of an array or a map, which comes in blocks."""
    while count := source.long():
        if count < 0:
            source.long()  # its size in bytes
        for _ in range(abs(count)):
            before = source.at
            yield read(source)
            if source.at == before and abs(count) > _MOST_EMPTY:
                raise _wrong()


_PLAIN: dict[str, Read] = {
    "null": lambda _source: None,
    "boolean": lambda source: source.take(1) != b"\x00",
    "int": _Bytes.long,
    "long": _Bytes.long,
    "float": lambda source: struct.unpack("<f", source.take(4))[0],
    "double": lambda source: struct.unpack("<d", source.take(8))[0],
    "bytes": lambda source: source.take(source.long()),
    "string": _Bytes.text,
}
