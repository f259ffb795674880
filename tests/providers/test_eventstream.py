"""AWS event streams: every header type, any split of the bytes, and nothing that is damaged gets through."""

import struct
import zlib
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ProviderError
from loomgate.providers.eventstream import Frame, FrameParser, HeaderValue

# Frames as AWS's own SDKs are tested with.
KNOWN = [
    (b"\x00\x00\x00\x10\x00\x00\x00\x00\x05\xc2H\xeb}\x98\xc8\xff", Frame({}, b"")),
    (
        b"\x00\x00\x00=\x00\x00\x00 \x07\xfd\x83\x96\x0ccontent-type\x07\x00\x10application/json{'foo':'bar'}"
        b"\x8d\x9c\x08\xb1",
        Frame({"content-type": "application/json"}, b"{'foo':'bar'}"),
    ),
    (
        b"\x00\x00\x00\x62\x00\x00\x00\x52\x03\xb5\xcb\x9c\x010\x00\x011\x01\x012\x02\x02\x013\x03\x00\x03"
        b"\x014\x04\x00\x00\x00\x04\x015\x05\x00\x00\x00\x00\x00\x00\x00\x05\x016\x06\x00\x05bytes\x017\x07\x00\x04utf8"
        b"\x018\x08\x00\x00\x00\x00\x00\x00\x00\x08\x019\x090123456789abcdef\x63\x35\x36\x71",
        Frame(
            {
                "0": True, "1": False, "2": 2, "3": 3, "4": 4, "5": 5, "6": b"bytes", "7": "utf8", "8": 8,
                "9": b"0123456789abcdef",
            },
            b"",
        ),
    ),
    (
        b"\x00\x00\x00\x1e\x00\x00\x00\x0e]J\xdb\x8d\x04long\x05\xff\xff\xff\xff\xff\xff\xff\xffK\xc22\xda",
        Frame({"long": -1}, b""),
    ),
]  # fmt: skip


def written(headers: dict[str, HeaderValue], payload: bytes) -> bytes:
    """A frame by the format's description."""
    head = b""
    for name, value in headers.items():
        named = name.encode()
        head += bytes([len(named)]) + named
        if isinstance(value, bool):
            head += b"\x00" if value else b"\x01"
        elif isinstance(value, int):
            head += struct.pack(">Bq", 5, value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            head += struct.pack(">BH", 7 if isinstance(value, str) else 6, len(raw)) + raw
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return whole + struct.pack(">I", zlib.crc32(whole))


def read(pieces: Iterable[bytes]) -> tuple[list[Frame], ProviderError | None]:
    parser = FrameParser()
    found: list[Frame] = []
    try:
        for piece in pieces:
            for frame in parser.feed(piece):
                found.append(frame)
    except ProviderError as error:
        return found, error
    assert not parser.pending
    return found, None


names = st.text(min_size=1, max_size=20)
values = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=50) | st.text(max_size=50)
frames = st.builds(Frame, st.dictionaries(names, values, max_size=4), st.binary(max_size=200))


@pytest.mark.parametrize(("data", "frame"), KNOWN)
def test_known_frames(data: bytes, frame: Frame) -> None:
    assert read([data]) == ([frame], None)


@settings(max_examples=100, deadline=None)
@given(sent=st.lists(frames, max_size=4), data=st.data())
def test_any_split_gives_the_same_frames(sent: list[Frame], data: st.DataObject) -> None:
    whole = b"".join(written(*frame) for frame in sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(pieces) == (sent, None)
    assert read(whole[at : at + 1] for at in range(len(whole))) == (sent, None)


@settings(max_examples=150, deadline=None)
@given(before=frames, damaged=frames, data=st.data())
def test_a_damaged_frame_is_refused_after_those_before_it(before: Frame, damaged: Frame, data: st.DataObject) -> None:
    first, second = written(*before), bytearray(written(*damaged))
    at = data.draw(st.integers(0, len(second) - 1))
    second[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(first) + len(second)))
    whole = first + bytes(second)
    found, error = read([whole[:cut], whole[cut:]])
    assert found == [before]
    assert error is not None
    assert error.kind == "malformed"


def test_damaged_lengths_are_refused_before_waiting_for_what_they_promise() -> None:
    data = bytearray(written({}, b"x" * 100))
    data[0] = 1
    assert read([bytes(data[:12])])[1] is not None


def reheaded(head: bytes, length: int | None = None, headers: int | None = None) -> bytes:
    """A frame with right checksums and whatever else."""
    prelude = struct.pack(">II", length or 16 + len(head), len(head) if headers is None else headers)
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + head
    return whole + struct.pack(">I", zlib.crc32(whole))


@pytest.mark.parametrize(
    "data",
    [
        reheaded(b"", length=15),
        reheaded(b"", headers=1),
        reheaded(b"", length=2**31),
        reheaded(b"\x04test\x04asdf\x04test\x04asdf"),  # a header twice
        reheaded(b"\x04test"),  # no type
        reheaded(b"\x04te"),
        reheaded(b"\x01a\x07\x00\x05bytes"[:-1]),  # a value that is shorter than it says
        reheaded(b"\x01a\x09" + b"x" * 15),
        reheaded(b"\x01a\x05" + b"x" * 7),
        reheaded(b"\x01a\x0a"),  # no such type
        reheaded(b"\x01\xff\x00"),
        reheaded(b"\x01a\x07\x00\x01\xff"),
        b'{"message": "not an event stream"}',
        b"HTTP/1.1 400",
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    found, error = read([data])
    assert found == []
    assert error is not None
    assert error.kind == "malformed"
