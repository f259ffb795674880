"""Server-sent events: any split of the bytes gives the same events, and those are the format's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.errors import ProviderError
from loomgate.providers.framing import Event, EventParser


def parse(*pieces: bytes) -> list[Event]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.end()


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: one\n\ndata: two\n\n", [(b"", b"one"), (b"", b"two")]),
        (b"data: one\r\n\r\ndata: two\r\n\r\n", [(b"", b"one"), (b"", b"two")]),
        (b"data: one\r\rdata: two\r\r", [(b"", b"one"), (b"", b"two")]),
        (b"data:one\n\n", [(b"", b"one")]),
        (b"data:  one\n\n", [(b"", b" one")]),
        (b"data: a\ndata: b\ndata\n\n", [(b"", b"a\nb\n")]),
        (b": comment\n\nevent: ping\n\ndata: x\n\n", [(b"", b"x")]),
        (b"event: delta\nid: 7\nretry: 10\nunknown: y\ndata: x\n\n", [(b"delta", b"x")]),
        (b"\xef\xbb\xbfdata: x\n\n", [(b"", b"x")]),
        (b"data: x\n\n\n\n\n", [(b"", b"x")]),
        (b"data: no blank line", [(b"", b"no blank line")]),
        (b"data: form\x0cfeed\x0band \x1cmore\x85\n\n", [(b"", b"form\x0cfeed\x0band \x1cmore\x85")]),
        (b"", []),
        (b"\xef\xbb", []),
    ],
)
def test_the_rules_of_the_format(stream: bytes, events: list[tuple[bytes, bytes]]) -> None:
    assert parse(stream) == events
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == events


@given(
    st.lists(
        st.sampled_from(
            [b"data: ", b"data", b"event: x", b"\n", b"\r", b"\r\n", b":", b"{}", b"\xef\xbb\xbf", b" ", b"i"]
        )
    ).map(b"".join),
    st.data(),
)
def test_any_split_gives_the_same_events(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(*pieces) == parse(stream)


@pytest.mark.parametrize(
    "stream", [b"data: " + b"x" * 200, b"data: xxxxxxxxx\n" * 20, b"data: " + b"x" * 200 + b"\n\n"]
)
def test_lines_and_events_are_bounded(stream: bytes) -> None:
    with pytest.raises(ProviderError) as caught:
        EventParser(limit=100).feed(stream)
    assert caught.value.kind == "malformed"
