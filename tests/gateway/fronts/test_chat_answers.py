"""Every wire, seen by a client that speaks OpenAI's chat completions (GATEWAY sections 10 and 11)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from loomgate.errors import ProviderError
from loomgate.gateway.fronts.front import answer_id
from loomgate.wire.chat import (
    Chunk,
    Extra,
    Finish,
    RedactedThinking,
    RedactedThinkingPart,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    ToolCallDelta,
    Usage,
)
from tests.gateway.fronts.kit import CHAT, COMPLETIONS, CREATED, MESSAGES, about, events, streamed, whole, written
from tests.providers.conformance.suite import Answer, Wire, chunks_of, decode, dialect, heard, scenario
from tests.providers.conformance.test_answers import CALLS, UNICODE, WHOLE


def put_together(body: bytes) -> ChatCompletion:
    """The stream as OpenAI's own library puts it together."""
    found = events(body)
    assert found.pop() == "[DONE]"
    state = ChatCompletionStreamState()
    for event in found:
        state.handle_chunk(ChatCompletionChunk.model_validate(event, strict=True))
    return state.current_completion_snapshot


def said(completion: ChatCompletion) -> tuple[Any, ...]:
    (choice,) = completion.choices
    message = choice.message
    calls = [
        (call.function.name, json.loads(call.function.arguments))
        for call in message.tool_calls or []
        if call.type == "function"
    ]
    return message.content or "", message.refusal or "", calls, choice.finish_reason


THINKING = Answer(text=["Yes."], thinking="Is it?")
ANSWERS = {
    **WHOLE,
    "pieces": Answer(text=["One", " two", "\n\n", "3."]),
    "thinking": THINKING,
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("strict", [True, False])
@scenario()
def test_stream_and_whole_answer_are_as_openais_and_say_the_same(wire: Wire, name: str, strict: bool) -> None:
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    answer = ANSWERS[name]
    found = heard(decode(wire, wire.stream(answer)))
    for upstream in (wire.stream(answer), wire.whole(answer)):
        body = whole(CHAT, wire, upstream, strict=strict)
        if strict:
            ChatCompletion.model_validate(body, strict=True)
        completion = ChatCompletion.construct(**body)
        choice = body["choices"][0]
        message = choice["message"]
        calls = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls", [])
        ]
        meant = (found.text, found.refusal, [(n, json.loads(a)) for n, a in found.calls])
        assert ((message["content"] or ""), (message["refusal"] or ""), calls) == meant
        assert completion.id
        assert body["provider"] == wire.vendor
        assert choice["finish_reason"] == (found.finish if strict else found.raw or found.finish)
        assert ("content_blocks" in message) is not strict
        assert ("reasoning_content" in message) is (not strict and bool(found.thinking))
    asked = {"stream_options": {"include_usage": True}}
    if strict:
        told = put_together(streamed(CHAT, wire, wire.stream(answer), **asked))
        assert said(told) == (*meant, found.finish)
        if found.usage is not None:
            assert told.usage is not None
            assert told.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def without_ids(body: bytes) -> list[Any]:
    """The events of a stream, but for the ids of calls: a vendor without ids has fresh ones made up."""
    found = events(body)
    for event in found[:-1]:
        for choice in event["choices"]:
            for call in choice.get("delta", {}).get("tool_calls", []):
                call.pop("id", None)
    return found


@pytest.mark.parametrize("strict", [True, False])
@scenario("parallel_tools")
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_split_of_the_endpoints_bytes_gives_the_client_the_same(
    wire: Wire, strict: bool, data: st.DataObject
) -> None:
    answer = data.draw(st.sampled_from([CALLS, UNICODE, THINKING]))
    body = wire.stream(answer) if data.draw(st.booleans()) else wire.whole(answer)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=12)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    for front in (CHAT, COMPLETIONS):
        split, together = (streamed(front, wire, *bodies, strict=strict) for bodies in (pieces, [body]))
        assert without_ids(split) == without_ids(together)


# --- the shape, in full ---

SPOKEN: list[Chunk] = [
    ThinkingDelta("Hm"),
    ThinkingDelta("."),
    ThinkingDelta("", "seal"),
    RedactedThinking("enc"),
    TextDelta("Let me "),
    TextDelta("look."),
    ToolCallDelta(0, "call_a", "weather"),
    ToolCallDelta(0, arguments='{"city":'),
    ToolCallDelta(0, arguments='"Berlin"}'),
    ToolCallDelta(1, "call_b", "now", "{}", "google seal"),
    Extra("groundingMetadata", {"webSearchQueries": ["x"]}),
    Finish("tool_calls", Usage(30, 12, 8, 4, 2), "tool_use"),
]
FRAME = {"id": "some-vendor-1763640000123", "created": CREATED, "model": "some-model", "provider": "some-vendor"}
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 12,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 4},
    "cache_read_input_tokens": 8,
    "cache_creation_input_tokens": 2,
}
CALL_A = {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Berlin"}'}}
CALL_B = {"id": "call_b", "type": "function", "function": {"name": "now", "arguments": "{}"}}


def deltas(body: bytes) -> list[dict[str, Any]]:
    return [choice["delta"] for event in events(body)[:-1] for choice in event["choices"]]


@pytest.mark.behaviour("TR-16", "TR-17", "STR-01", "STR-03", "FR-01")
def test_a_whole_answer() -> None:
    assert CHAT.whole(SPOKEN, about()) == {
        **FRAME,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Let me look.",
                    "refusal": None,
                    "tool_calls": [CALL_A, CALL_B],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": USAGE,
    }


@pytest.mark.behaviour("STR-02", "TR-16", "FR-02")
def test_a_whole_answer_with_strict_compliance_off() -> None:
    answer = CHAT.whole(SPOKEN, about(strict=False))
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_use"
    assert choice["groundingMetadata"] == {"webSearchQueries": ["x"]}
    assert choice["message"] == {
        "role": "assistant",
        "content": "Let me look.",
        "refusal": None,
        "reasoning_content": "Hm.",
        "content_blocks": [
            {"type": "thinking", "thinking": "Hm.", "signature": "seal"},
            {"type": "redacted_thinking", "data": "enc"},
            {"type": "text", "text": "Let me look."},
        ],
        "tool_calls": [CALL_A, {**CALL_B, "extra_content": {"google": {"thought_signature": "google seal"}}}],
    }
    # What was told can be told back.
    (message,) = CHAT.chat({"model": "m", "messages": [choice["message"]]}).messages
    assert message.content == [ThinkingPart("Hm.", "seal"), RedactedThinkingPart("enc"), TextPart("Let me look.")]
    assert [call.signature for call in message.tool_calls] == [None, "google seal"]


@pytest.mark.behaviour("STM-04", "STM-05", "STM-06", "STR-03")
def test_a_stream() -> None:
    body = written(CHAT, SPOKEN)
    found = events(body)
    assert found.pop() == "[DONE]"
    for event in found:
        assert {name: event[name] for name in FRAME} == FRAME
        assert event["object"] == "chat.completion.chunk"
        (choice,) = event["choices"]
        assert (choice["index"], choice["logprobs"]) == (0, None)
    assert deltas(body) == [
        {"role": "assistant", "content": ""},
        {"content": "Let me "},
        {"content": "look."},
        {"tool_calls": [{"index": 0, **CALL_A, "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Berlin"}'}}]},
        {"tool_calls": [{"index": 1, **CALL_B}]},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in found] == [None] * 7 + ["tool_calls"]
    assert [event.get("usage") for event in found] == [None] * 7 + [USAGE]
    assert "usage" not in found[0]


@pytest.mark.behaviour("STM-05")
def test_an_answers_id() -> None:
    assert answer_id("msg_1", "anthropic", 1_763_640_000.1234) == "msg_1"
    assert answer_id(None, "bedrock", 1_763_640_000.1234) == "bedrock-1763640000123"


@pytest.mark.behaviour("STR-02", "FR-02")
def test_a_stream_with_strict_compliance_off() -> None:
    body = written(CHAT, SPOKEN, strict=False)
    found = deltas(body)

    def blocks(index: int, **delta: str) -> list[dict[str, Any]]:
        return [{"index": index, "delta": delta}]

    assert found[:7] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm", "content_blocks": blocks(0, thinking="Hm")},
        {"reasoning_content": ".", "content_blocks": blocks(0, thinking=".")},
        {"content_blocks": blocks(0, signature="seal")},
        {"content_blocks": blocks(1, data="enc")},
        {"content": "Let me ", "content_blocks": blocks(2, text="Let me ")},
        {"content": "look.", "content_blocks": blocks(2, text="look.")},
    ]
    ends = [event["choices"][0] for event in events(body)[-3:-1]]
    assert ends[0]["groundingMetadata"] == {"webSearchQueries": ["x"]}
    assert ends[1]["finish_reason"] == "tool_use"


def test_usage_in_a_chunk_of_its_own() -> None:
    """As OpenAI does it: null in every other chunk, and no choices beside it."""
    found = events(written(CHAT, SPOKEN, stream_options={"include_usage": True}))
    assert found.pop() == "[DONE]"
    assert found.pop() == {**FRAME, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    assert all(event["usage"] is None for event in found)
    found = events(written(CHAT, SPOKEN, stream_options={"include_usage": False}))
    assert not any("usage" in event for event in found[:-1])
    found = events(written(CHAT, [Finish("stop")], stream_options={"include_usage": True}))
    assert found[-2]["usage"] is None


@pytest.mark.behaviour("FR-01", "FR-02")
def test_a_reason_that_was_not_told() -> None:
    for strict in (True, False):
        answer = CHAT.whole([TextDelta("x"), Finish("stop")], about(strict=strict))
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert "usage" not in answer


@pytest.mark.behaviour("STM-07", "STM-10")
def test_a_stream_that_breaks() -> None:
    encoder = CHAT.encoder(about())
    encoder.feed(TextDelta("Half"))
    body = encoder.error("Overloaded", "server_error", "overloaded")
    error = {"message": "Overloaded", "type": "server_error", "param": None, "code": "overloaded"}
    assert events(body) == [{"error": error, "provider": "some-vendor"}]
    assert b"[DONE]" not in body


@pytest.mark.behaviour("STM-10")
@scenario("cut")
def test_what_came_before_a_break_is_whole(wire: Wire) -> None:
    """A stream of the endpoint that is cut, or nonsense, or an error: the client has whole events before it."""
    for upstream in (wire.cut(Answer(text=["One", "two", "three"])), wire.midstream_error() or b"", wire.malformed()):
        for front in (CHAT, COMPLETIONS, MESSAGES):
            encoder = front.encoder(about(wire))
            pieces: list[bytes] = []

            def read() -> None:
                for chunk in chunks_of(dialect(wire).decoder(), [upstream]):  # noqa: B023 -- called at once
                    pieces.append(encoder.feed(chunk))  # noqa: B023

            with pytest.raises(ProviderError) as caught:
                read()
            body = b"".join(pieces) + encoder.error(caught.value.message, caught.value.kind, None)
            assert events(body)[-1]["error"]["message"] == caught.value.message
            assert b"[DONE]" not in body
            assert b"message_stop" not in body


@pytest.mark.behaviour("CCH-06")
@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("name", ["calls", "unicode", "plain", "refusal", "thinking"])
@scenario()
def test_a_kept_answer_is_replayed(wire: Wire, name: str, usage: bool) -> None:
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    kept = whole(CHAT, wire, wire.whole(ANSWERS[name]))
    replayed = put_together(CHAT.replay(kept, about(wire, stream_options={"include_usage": usage})))
    before = ChatCompletion.model_validate(kept, strict=True)
    assert said(replayed) == said(before)
    assert (replayed.usage == before.usage) is usage or before.usage is None


@pytest.mark.behaviour("CCH-06")
@pytest.mark.behaviour("FR-16")
@scenario("parallel_tools")
def test_who_asked_with_functions_reads_a_function_call(wire: Wire) -> None:
    asked = {"functions": [{"name": "weather"}]}
    one = whole(CHAT, wire, wire.whole(CALLS), **asked)
    streams = [streamed(CHAT, wire, wire.stream(CALLS), **asked), CHAT.replay(one, about(wire, **asked))]
    for completion in (ChatCompletion.model_validate(one, strict=True), *map(put_together, streams)):
        (choice,) = completion.choices
        call = choice.message.function_call
        assert call is not None
        assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Berlin", "days": [1, 2]})
        assert (choice.message.tool_calls, choice.finish_reason) == (None, "function_call")


def test_a_long_answer_is_replayed_in_pieces() -> None:
    kept = CHAT.whole([TextDelta("x" * 1201), *SPOKEN], about(strict=False))
    kept["choices"].append({**kept["choices"][0], "index": 1})
    body = CHAT.replay(kept, about())
    texts = [delta["content"] for delta in deltas(body) if delta.get("content")]
    assert [len(text) for text in texts] == [500, 500, 213] * 2
    calls = [delta["tool_calls"][0] for delta in deltas(body) if "tool_calls" in delta]
    assert [call["function"]["arguments"] for call in calls[:4]] == ["", '{"city":"Berlin"}', "", "{}"]
    assert (calls[0]["id"], "id" in calls[1]) == ("call_a", False)
    last = events(body)[-2]
    assert [choice["finish_reason"] for choice in last["choices"]] == ["tool_use", "tool_use"]
    assert last["usage"] == kept["usage"]
    assert events(CHAT.replay({}, about()))[-1] == "[DONE]"
