"""Clients that speak OpenAI's legacy completions, for every dialect."""

from typing import Any

import pytest
from openai.types import Completion

from loomgate.errors import ApiError
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Finish,
    RefusalDelta,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from tests.gateway.fronts.kit import COMPLETIONS, CREATED, about, events, streamed, whole, written
from tests.gateway.fronts.test_chat_answers import ANSWERS, USAGE
from tests.providers.conformance.suite import Wire, assert_told, decode, heard, model, scenario


def asked(**fields: Any) -> Chat:
    return COMPLETIONS.chat({"model": "m", "prompt": "Once", **fields})


@pytest.mark.behaviour("TR-02", "TR-04")
def test_a_prompt_is_a_users_message() -> None:
    expected = Chat(model="m", messages=[ChatMessage(role="user", content="Once")], stream=False, lenient=True)
    assert asked() == asked(prompt=["Once"]) == asked(n=1, best_of=1, echo=False, suffix=None) == expected
    call = asked(
        max_tokens=-1,
        temperature=9,
        top_p="portkey-default",
        stop="a",
        seed=1,
        user="u",
        logit_bias={"1": 1},
        presence_penalty=3,
        frequency_penalty=1,
        stream=True,
        stream_options={"include_usage": True},
        whatever=1,
    )
    assert (call.max_completion_tokens, call.temperature, call.top_p, call.stop) == (0, 2, None, ["a"])
    assert (call.seed, call.user, call.logit_bias, call.presence_penalty) == (1, "u", {"1": 1}, 2)
    assert (call.frequency_penalty, call.stream, call.extra) == (1, True, {"whatever": 1})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"model": 1}, "model"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2}, "n"),
        ({"logprobs": 0}, "logprobs"),
        ({"stop": 1}, "stop"),
    ],
)
def test_a_mistake_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert f"'{param}'" in caught.value.message


@pytest.mark.parametrize("stream", [True, False])
@scenario("plain")
def test_every_vendor_understands_it(wire: Wire, stream: bool) -> None:
    call = COMPLETIONS.chat({"model": model(wire), "prompt": "Once", "max_tokens": 7, "stream": stream})
    assert_told(wire, Chat(model=model(wire), messages=call.messages, max_completion_tokens=7, stream=stream))


@pytest.mark.parametrize("name", ["plain", "unicode", "length", "content_filter", "refusal", "pieces", "thinking"])
@scenario()
def test_every_answer(wire: Wire, name: str) -> None:
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    answer = ANSWERS[name]
    found = heard(decode(wire, wire.stream(answer)))
    reason = "stop" if found.finish == "tool_calls" else found.finish
    for upstream in (wire.stream(answer), wire.whole(answer)):
        body = whole(COMPLETIONS, wire, upstream)
        Completion.model_validate(body, strict=True)
        (choice,) = body["choices"]
        assert (choice["text"], choice["finish_reason"]) == (found.text + found.refusal, reason)
        assert (body["object"], body["provider"], body["created"]) == ("text_completion", wire.vendor, CREATED)
    parts = events(streamed(COMPLETIONS, wire, wire.stream(answer)))
    assert parts.pop() == "[DONE]"
    for part in parts:
        # Its type has no null for a piece's reason, though that is what OpenAI sends.
        reason_told = part["choices"][0]["finish_reason"]
        choices = [{**part["choices"][0], "finish_reason": reason_told or "stop"}]
        Completion.model_validate({**part, "choices": choices}, strict=True)
    assert "".join(part["choices"][0]["text"] for part in parts) == found.text + found.refusal
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [reason]


def test_usage_and_what_has_no_place() -> None:
    usage = Usage(30, 12, 8, 4, 2)
    chunks = [
        ThinkingDelta("hm"),
        TextDelta("a"),
        RefusalDelta("b"),
        ToolCallDelta(0, "i", "f"),
        Finish("tool_calls", usage),
    ]
    body = COMPLETIONS.whole(chunks, about())
    assert body["usage"] == USAGE
    assert body["choices"] == [{"text": "ab", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert events(written(COMPLETIONS, chunks))[-2]["usage"] == USAGE
    own = events(written(COMPLETIONS, chunks, stream_options={"include_usage": True}))
    assert (own[-2]["choices"], own[-2]["usage"], own[-3]["usage"], own[0]["usage"]) == ([], USAGE, None, None)


@pytest.mark.behaviour("CCH-06")
def test_a_kept_answer_is_replayed() -> None:
    kept = COMPLETIONS.whole([TextDelta("x" * 501), Finish("length", Usage(1, 2))], about())
    found = events(COMPLETIONS.replay(kept, about()))
    assert [len(part["choices"][0]["text"]) for part in found[:-1]] == [500, 1, 0]
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-2]["usage"] == kept["usage"]


@pytest.mark.behaviour("STM-07")
def test_a_stream_that_breaks() -> None:
    body = COMPLETIONS.encoder(about()).error("Broke", "server_error", None)
    error = {"message": "Broke", "type": "server_error", "param": None, "code": None}
    assert events(body) == [{"error": error, "provider": "some-vendor"}]
