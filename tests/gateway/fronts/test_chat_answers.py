"""Every wire, seen by a client that speaks OpenAI's chat completions (GATEWAY sections 10 and 11)."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.gateway.fronts.kit import CHAT, events, streamed, whole
from tests.providers.conformance.suite import Answer, Wire, decode, heard, scenario
from tests.providers.conformance.test_answers import CALLS, PLAIN, UNICODE, WHOLE


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


ANSWERS = {
    **WHOLE,
    "pieces": Answer(text=["One", " two", "\n\n", "3."]),
    "thinking": Answer(text=["Yes."], thinking="Is it?"),
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


@scenario("parallel_tools")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_split_of_the_endpoints_bytes_gives_the_client_the_same(wire: Wire, data: st.DataObject) -> None:
    body = wire.stream(data.draw(st.sampled_from([PLAIN, UNICODE])) if "gemini" in wire.name else CALLS)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=12)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert len(streamed(CHAT, wire, *pieces)) == len(streamed(CHAT, wire, body))
