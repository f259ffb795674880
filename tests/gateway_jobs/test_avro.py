"""Avro's object container files, written here by the letter of the specification."""

import json
import math
import struct
import zlib
from typing import Any

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.jobs.avro import Container

SYNC = bytes(range(16))


def long(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def text(value: str) -> bytes:
    return long(len(value.encode())) + value.encode()


def container(schema: Any, *blocks: list[bytes], codec: str | None = None) -> bytes:
    """A file of ``blocks`` of encoded records."""
    told = {"avro.schema": json.dumps(schema), **({"avro.codec": codec} if codec else {})}
    made = b"Obj\x01" + long(len(told)) + b"".join(text(name) + text(value) for name, value in told.items())
    made += long(0) + SYNC
    for block in blocks:
        data = b"".join(block)
        if codec == "deflate":
            squeeze = zlib.compressobj(wbits=-15)
            data = squeeze.compress(data) + squeeze.flush()
        made += long(len(block)) + long(len(data)) + data + SYNC
    return made


def read(data: bytes, piece: int = 7) -> list[Any]:
    reader = Container()
    found = [value for at in range(0, len(data), piece) for value in reader.feed(data[at : at + piece])]
    reader.end()
    return found


RECORD = {
    "type": "record",
    "name": "Row",
    "namespace": "x",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "n", "type": ["null", "long"]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "again", "type": {"type": "array", "items": "Kind"}},
        {"name": "floats", "type": {"type": "array", "items": "double"}},
        {"name": "map", "type": {"type": "map", "values": ["string", "float"]}},
        {"name": "flag", "type": "boolean"},
        {"name": "raw", "type": {"type": "fixed", "name": "F", "size": 2}},
        {"name": "next", "type": ["null", "x.Row"]},
    ],
}


def row(id: str, inner: bytes = b"\x00") -> bytes:
    floats = long(-2) + long(16) + struct.pack("<2d", 0.5, -1.0) + long(0)  # a block with its size in bytes
    mapped = long(1) + text("a") + long(1) + struct.pack("<f", 1.5) + long(0)
    again = long(1) + long(0) + long(1) + long(1) + long(0)  # two blocks
    return text(id) + long(1) + long(-(2**40)) + long(1) + again + floats + mapped + b"\x01" + b"ab" + inner


@pytest.mark.parametrize("codec", [None, "null", "deflate"])
@pytest.mark.parametrize("piece", [1, 7, 100_000])
def test_every_type(codec: str | None, piece: int) -> None:
    data = container(RECORD, [row("ü"), row("b", long(1) + row("c"))], [], [row("d")], codec=codec)
    found = read(data, piece)
    plain = {
        "n": -(2**40),
        "kind": "B",
        "again": ["A", "B"],
        "floats": [0.5, -1.0],
        "map": {"a": 1.5},
        "flag": True,
        "raw": b"ab",
        "next": None,
    }
    assert found[0] == {"id": "ü", **plain}
    assert found[1]["next"] == {"id": "c", **plain}
    assert found[2]["id"] == "d"


def test_numbers() -> None:
    numbers = [0, -1, 1, 63, -64, 64, 2**31 - 1, -(2**63), 2**63 - 1]
    assert read(container("long", [long(number) for number in numbers])) == numbers
    assert math.isclose(read(container("float", [struct.pack("<f", 0.1)]))[0], 0.1, rel_tol=1e-6)
    assert read(container({"type": "string"}, [text("x" * 1000)])) == ["x" * 1000]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"message": "no"}', "malformed"),
        (container("long", [long(1)])[:-1], "cut"),
        (container("long", [long(1)])[:10], "cut"),
        (b"", "cut"),
        (container("long", [long(1)], codec="snappy"), "malformed"),
        (container("unheard-of", [long(1)]), "malformed"),
        (container({"type": "record", "name": "R"}, [long(1)]), "malformed"),
        (container("string", [long(500) + b"short"]), "malformed"),
        (container(["null", "long"], [long(9)]), "malformed"),
        (container("string", [text("é")[:1] + b"\xff\xff"]), "malformed"),
        (container("long", [b"\xff" * 12]), "malformed"),
        (container("long", [long(1)])[:-16] + b"y" * 16, "malformed"),
        (container({"type": "array", "items": "null"}, [long(10**12) + long(0)]), "malformed"),
    ],
)
def test_what_is_no_avro(data: bytes, kind: str) -> None:
    with pytest.raises(ProviderError) as caught:
        read(data)
    assert caught.value.kind == kind


def test_a_block_that_grows_beyond_bounds() -> None:
    squeeze = zlib.compressobj(wbits=-15)
    data = squeeze.compress(bytes(65 << 20)) + squeeze.flush()
    head = container("null", codec="deflate")
    with pytest.raises(ProviderError, match="too long"):
        read(head + long(1) + long(len(data)) + data + SYNC, 1 << 20)
