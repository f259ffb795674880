"""Every wire: from an answer's bytes to chunks (GATEWAY STM-04, STM-06, TR-16, TR-17, FR-01, FR-10 to FR-17)."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ProviderError
from loomgate.wire.chat import Chunk, Usage
from tests.providers.conformance.suite import (
    ERRORS,
    SCENARIOS,
    Answer,
    Wire,
    chunks_of,
    decode,
    dialect,
    heard,
    scenario,
    wires,
    without_ids,
)

PLAIN = Answer(text=["Hello"], usage=Usage(9, 4))
UNICODE = Answer(text=["Grüße, ", "世界", " 👩‍👩‍👧 \u2028\u0085", '"\\\n\t'], calls=[("größe", '{"ß":"日本\\u2028"}')])
CALLS = Answer(
    text=["Let me ", "look."],
    calls=[("weather", '{"city":"Berlin","days":[1,2]}'), ("weather", '{"city":"東京","days":[]}'), ("time", "{}")],
    finish="tool_calls",
    usage=Usage(30, 12),
)


def test_there_are_wires_and_each_says_why_it_lacks_what_it_lacks() -> None:
    names = [wire.name for wire in wires()]
    assert "openai" in names
    assert len(set(names)) == len(names)
    for wire in wires():
        assert wire.lacks == set(wire.why)
        assert wire.lacks <= SCENARIOS


@scenario("plain")
def test_plain(wire: Wire) -> None:
    found = heard(decode(wire, wire.stream(PLAIN)))
    assert (found.text, found.refusal, found.calls, found.finish) == ("Hello", "", [], "stop")


@scenario("plain")
def test_an_answer_that_says_nothing(wire: Wire) -> None:
    found = heard(decode(wire, wire.stream(Answer(usage=Usage(9, 1)))))
    assert (found.text, found.refusal, found.calls, found.finish) == ("", "", [], "stop")


@scenario("pieces")
def test_every_piece_is_given_on_as_it_comes(wire: Wire) -> None:
    texts = ["One", " two", " ", "three", "\n\n", "4."]
    assert heard(decode(wire, wire.stream(Answer(text=texts)))).pieces == texts


@scenario("thinking")
def test_thoughts_are_apart_from_the_text(wire: Wire) -> None:
    answer = Answer(text=["Yes."], thinking="Is it? It is.")
    for body in (wire.stream(answer), wire.whole(answer)):
        found = heard(decode(wire, body))
        assert (found.text, found.refusal, found.thinking, found.finish) == ("Yes.", "", "Is it? It is.", "stop")


@scenario("tools")
def test_a_tool_call(wire: Wire) -> None:
    answer = Answer(calls=[("weather", '{"city":"Berlin"}')], finish="tool_calls")
    found = heard(decode(wire, wire.stream(answer)))
    assert (found.text, found.calls, found.finish) == ("", answer.calls, "tool_calls")


@scenario("parallel_tools")
def test_parallel_tool_calls_after_text(wire: Wire) -> None:
    """GATEWAY STM-06: calls are numbered by call, not by block."""
    found = heard(decode(wire, wire.stream(CALLS)))
    assert (found.text, found.calls, found.finish) == ("Let me look.", CALLS.calls, "tool_calls")
    assert len(set(found.ids)) == 3


@scenario("tool_without_arguments")
def test_a_tool_call_without_arguments_has_an_empty_object(wire: Wire) -> None:
    found = heard(decode(wire, wire.stream(Answer(calls=[("now", "{}")], finish="tool_calls"))))
    assert found.calls == [("now", "{}")]


@scenario("refusal")
def test_a_refusal(wire: Wire) -> None:
    found = heard(decode(wire, wire.stream(Answer(refusal="I can't help with that."))))
    assert (found.text, found.refusal, found.calls) == ("", "I can't help with that.", [])
    assert found.finish in ("stop", "content_filter")


@scenario("length")
def test_length(wire: Wire) -> None:
    found = heard(decode(wire, wire.stream(Answer(text=["Once upon"], finish="length"))))
    assert (found.text, found.finish) == ("Once upon", "length")


@scenario("content_filter")
def test_content_filter(wire: Wire) -> None:
    found = heard(decode(wire, wire.stream(Answer(text=["Take"], finish="content_filter"))))
    assert (found.text, found.finish) == ("Take", "content_filter")


@scenario("usage")
def test_usage(wire: Wire) -> None:
    assert heard(decode(wire, wire.stream(PLAIN))).usage == Usage(9, 4)


@scenario("cached_usage")
def test_cached_tokens_are_part_of_the_prompt(wire: Wire) -> None:
    """GATEWAY TR-17: total tokens include what came from the cache."""
    usage = Usage(1000, 5, cached_tokens=800)
    assert heard(decode(wire, wire.stream(Answer(text=["x"], usage=usage)))).usage == usage


@scenario("reasoning_usage")
def test_reasoning_tokens_are_part_of_the_completion(wire: Wire) -> None:
    usage = Usage(10, 500, reasoning_tokens=450)
    assert heard(decode(wire, wire.stream(Answer(text=["x"], usage=usage)))).usage == usage


@scenario("unicode")
def test_unicode(wire: Wire) -> None:
    found = heard(decode(wire, wire.stream(UNICODE)))
    ((name, arguments),) = found.calls  # a vendor may send the text of the arguments, or their value
    assert (found.text, name, json.loads(arguments)) == ("".join(UNICODE.text), "größe", {"ß": "日本\u2028"})


# --- whole answers ---

WHOLE = {
    "plain": PLAIN,
    "calls": CALLS,
    "unicode": UNICODE,
    "length": Answer(text=["Once upon"], finish="length"),
    "content_filter": Answer(text=["Take"], finish="content_filter"),
    "refusal": Answer(refusal="I can't help with that."),
    "cached_usage": Answer(text=["x"], usage=Usage(1000, 5, cached_tokens=800)),
    "reasoning_usage": Answer(text=["x"], usage=Usage(10, 500, reasoning_tokens=450)),
}


@pytest.mark.parametrize("name", WHOLE)
@scenario()
def test_a_whole_answer_says_what_the_stream_says(wire: Wire, name: str) -> None:
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    answer = WHOLE[name]
    whole, stream = heard(decode(wire, wire.whole(answer))), heard(decode(wire, wire.stream(answer)))
    assert (whole.text, whole.refusal, whole.finish, whole.usage) == (
        stream.text,
        stream.refusal,
        stream.finish,
        stream.usage,
    )
    assert [(name, json.loads(arguments)) for name, arguments in whole.calls] == [
        (name, json.loads(arguments)) for name, arguments in stream.calls
    ]
    assert (whole.thinking, whole.signatures, whole.raw) == (stream.thinking, stream.signatures, stream.raw)


@scenario("plain")
def test_the_endpoint_names_its_answer_before_the_first_chunk(wire: Wire) -> None:
    """GATEWAY STM-05: where the endpoint has an id, the client sees it."""
    for body in (wire.stream(PLAIN), wire.whole(PLAIN)):
        decoder = dialect(wire).decoder()
        next(iter(chunks_of(decoder, [body])))
        assert (decoder.id is not None) is (wire.name != "bedrock")  # Converse has none


# --- failures ---


@pytest.mark.parametrize("kind", ERRORS)
@scenario()
def test_error_answers(wire: Wire, kind: str) -> None:
    """GATEWAY GERR-01, GERR-02: an endpoint's error keeps its status and words."""
    if kind in wire.lacks:
        pytest.skip(wire.why[kind])
    status, headers, body = wire.error(kind)
    error = dialect(wire).error(status, headers, body)
    assert (error.kind, error.status) == (kind, status)
    assert error.message
    assert not error.message.startswith(("{", "[", "<"))
    assert error.retry_after == (7 if kind == "rate_limit" and "retry_after" not in wire.lacks else None)


@scenario()
def test_an_error_that_is_not_in_the_format(wire: Wire) -> None:
    """GATEWAY GERR-09: a page of a proxy in between."""
    for body in (b"", b"<html><body>502 Bad Gateway</body></html>", b"upstream connect error", b'"what"', b"[]"):
        error = dialect(wire).error(502, {}, body)
        assert (error.kind, error.status) == ("server", 502)
        assert "<" not in error.message
        assert "502" in error.message or "what" in error.message
    assert dialect(wire).error(302, {"location": "/"}, b"").kind == "malformed"


@scenario("cut")
def test_a_stream_that_breaks_off(wire: Wire) -> None:
    """GATEWAY STM-10 is not copied: half an answer is an error, and what came before it is heard."""
    chunks, error = until_error(wire, wire.cut(Answer(text=["One", "two", "three"])))
    assert error.kind == "cut"
    assert heard(chunks).text.startswith("One")
    assert heard(chunks).text != "Onetwothree"


@scenario("cut")
def test_no_stream_at_all(wire: Wire) -> None:
    assert until_error(wire, b"")[1].kind == "cut"


@scenario("malformed")
def test_nonsense(wire: Wire) -> None:
    """GATEWAY GERR-03 is not copied: an unreadable answer is an error of its own kind."""
    assert until_error(wire, wire.malformed())[1].kind == "malformed"


@scenario("midstream_error")
def test_an_error_within_the_stream(wire: Wire) -> None:
    """GATEWAY STM-07 is not copied: it is raised, after what came before."""
    body = wire.midstream_error()
    assert body is not None
    chunks, error = until_error(wire, body)
    assert heard(chunks).text == "Half"
    assert error.kind in ("server", "overloaded", "rate_limit")
    assert error.message


def until_error(wire: Wire, body: bytes, *more: bytes) -> tuple[list[Chunk], ProviderError]:
    chunks: list[Chunk] = []

    def read() -> None:
        for chunk in chunks_of(dialect(wire).decoder(), [body, *more]):
            chunks.append(chunk)

    with pytest.raises(ProviderError) as caught:
        read()
    return chunks, caught.value


# --- bytes ---

BODIES = {
    "calls": lambda wire: wire.stream(CALLS),
    "unicode": lambda wire: wire.stream(UNICODE),
    "thinking": lambda wire: wire.stream(Answer(text=["a", "b"], thinking="hm", usage=Usage(5, 3))),
    "whole": lambda wire: wire.whole(CALLS),
}


@scenario()
@pytest.mark.parametrize("body", BODIES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_split_of_the_bytes_gives_the_same_chunks(wire: Wire, body: str, data: st.DataObject) -> None:
    whole = BODIES[body](wire)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert without_ids(decode(wire, *pieces)) == without_ids(decode(wire, whole))


@scenario()
def test_byte_by_byte(wire: Wire) -> None:
    whole = wire.stream(CALLS)
    assert without_ids(decode(wire, *(whole[at : at + 1] for at in range(len(whole))))) == without_ids(
        decode(wire, whole)
    )


@scenario("midstream_error")
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_came_before_an_error_is_heard_however_the_bytes_are_split(wire: Wire, data: st.DataObject) -> None:
    whole = wire.midstream_error()
    assert whole is not None
    at = data.draw(st.integers(0, len(whole)))
    chunks, error = until_error(wire, whole[:at], whole[at:])
    assert heard(chunks).text == "Half"
    assert error.message
