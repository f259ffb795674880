"""Clients that speak Anthropic's messages, for every dialect (GATEWAY sections 9 to 11, from the other side)."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ApiError
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Extra,
    File,
    FilePart,
    Finish,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    RedactedThinking,
    RedactedThinkingPart,
    RefusalDelta,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ThinkingPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.gateway.fronts.kit import MESSAGES, about, events, is_clear, refusals, streamed, whole, written
from tests.gateway.fronts.test_chat_requests import JSON
from tests.providers.conformance.suite import Wire, assert_told, decode, heard, model, request, scenario, wires
from tests.providers.conformance.test_answers import CALLS, WHOLE
from tests.providers.conformance.test_requests import PIXEL

EPHEMERAL = {"type": "ephemeral"}
HI = [{"role": "user", "content": "Hi"}]
# What a coding agent sends: a system prompt in blocks with marks for the cache, large tools, parallel calls, thoughts.
AGENT: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "You are an agent."},
        {"type": "text", "text": "You work in a shell.", "cache_control": EPHEMERAL},
    ],
    "tools": [
        {
            "name": name,
            "description": f"{name} something. " * 50,
            "input_schema": {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": {
                    "path": {"type": "string", "description": "The path"},
                    "edits": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
                },
                "required": ["path"],
                "additionalProperties": False,
            },
        }
        for name in ("Read", "Edit")
    ],
    "metadata": {"user_id": "user_1"},
    "thinking": {"type": "enabled", "budget_tokens": 31999},
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "<reminder>x</reminder>"}, {"type": "text", "text": "Go."}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Two files.", "signature": "sig"},
                {"type": "redacted_thinking", "data": "enc"},
                {"type": "text", "text": "Reading."},
                {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a"}},
                {"type": "tool_use", "id": "toolu_2", "name": "Read", "input": {"path": "b"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "text of a"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "content": [{"type": "text", "text": "No such file"}],
                    "is_error": True,
                    "cache_control": EPHEMERAL,
                },
                {"type": "text", "text": "Go on.", "cache_control": EPHEMERAL},
            ],
        },
    ],
}


def asked(**fields: Any) -> Chat:
    return MESSAGES.chat({"model": "m", "max_tokens": 100, "messages": HI, **fields})


def sent(wire_name: str, **fields: Any) -> dict[str, Any]:
    (wire,) = (wire for wire in wires() if wire.name == wire_name)
    return json.loads(request(wire, asked(**{"model": model(wire), **fields})).body)


# --- requests ---


def test_an_agents_request_is_read_whole() -> None:
    call = MESSAGES.chat(AGENT)
    assert call == Chat(
        model="claude-sonnet-4-6",
        messages=[
            ChatMessage(
                role="system", content=[TextPart("You are an agent."), TextPart("You work in a shell.", EPHEMERAL)]
            ),
            ChatMessage(role="user", content=[TextPart("<reminder>x</reminder>"), TextPart("Go.")]),
            ChatMessage(
                role="assistant",
                content=[ThinkingPart("Two files.", "sig"), RedactedThinkingPart("enc"), TextPart("Reading.")],
                tool_calls=[ToolCall("toolu_1", "Read", '{"path":"a"}'), ToolCall("toolu_2", "Read", '{"path":"b"}')],
            ),
            ChatMessage(role="tool", content="text of a", tool_call_id="toolu_1"),
            ChatMessage(
                role="tool",
                content=[TextPart("No such file")],
                tool_call_id="toolu_2",
                is_error=True,
                cache_control=EPHEMERAL,
            ),
            ChatMessage(role="user", content=[TextPart("Go on.", EPHEMERAL)]),
        ],
        tools=[
            FunctionTool(name=tool["name"], description=tool["description"], parameters=tool["input_schema"])
            for tool in AGENT["tools"]
        ],
        max_completion_tokens=32000,
        user="user_1",
        thinking=AGENT["thinking"],
        lenient=True,
    )


def test_an_agents_request_comes_out_as_it_went_in() -> None:
    """By way of our words and back: nothing of it is lost."""
    (wire,) = (wire for wire in wires() if wire.name == "anthropic")
    made = json.loads(request(wire, MESSAGES.chat(AGENT)).body)
    for message in AGENT["messages"]:
        assert isinstance(message["content"], list)
    assert made == AGENT


@scenario("tools")
def test_an_agents_request_to_every_vendor(wire: Wire) -> None:
    for stream in (True, False):
        call = MESSAGES.chat({**AGENT, "model": model(wire), "stream": stream})
        # Thinking aside, which other tests look at.
        call = msgspec.structs.replace(call, lenient=False, thinking=None, user=None)
        plain = [
            msgspec.structs.replace(
                said,
                is_error=False,
                cache_control=None,
                content=[TextPart(part.text) for part in said.content if isinstance(part, TextPart)]
                if isinstance(said.content, list)
                else said.content,
            )
            for said in call.messages
        ]
        json.loads(request(wire, call).body)
        found = assert_told(wire, msgspec.structs.replace(call, messages=plain))
        assert found.stream is stream


def test_content() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    content = [
        image,
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}, "cache_control": EPHEMERAL},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "QQ=="},
            "title": "T",
        },
        {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}, "citations": {"enabled": False}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "words"}, "title": "T"},
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "text", "text": "in"}]},
            "context": "C",
        },
        {"type": "document", "source": {"type": "file", "file_id": "f1"}},
        {"type": "search_result", "source": "https://x", "title": "T", "content": [{"type": "text", "text": "found"}]},
    ]
    (message,) = asked(messages=[{"role": "user", "content": content}]).messages
    assert message.content == [
        ImagePart(ImageUrl(f"data:image/png;base64,{PIXEL}")),
        ImagePart(ImageUrl("https://x/y.png"), EPHEMERAL),
        FilePart(File(file_data="data:application/pdf;base64,QQ==", filename="T")),
        FilePart(File(file_url="https://x/y.pdf", mime_type="application/pdf")),
        TextPart("T\n\nwords"),
        TextPart("C"),
        TextPart("in"),
        FilePart(File(file_id="f1")),
        TextPart("T\nhttps://x\nfound"),
    ]


@pytest.mark.parametrize(
    ("choice", "ours", "parallel"),
    [
        ({"type": "auto"}, "auto", None),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "Read"}, NamedFunction("Read"), None),
    ],
)
def test_tool_choice(choice: dict[str, Any], ours: Any, parallel: bool | None) -> None:
    call = asked(tools=AGENT["tools"], tool_choice=choice)
    assert (call.tool_choice, call.parallel_tool_calls) == (ours, parallel)


def test_everything_else() -> None:
    output = {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}}
    call = asked(
        stop_sequences=["a"],
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        service_tier="standard_only",
        output_config=output,
        context_management={"edits": []},
        whatever=1,
    )
    assert (call.stop, call.temperature, call.top_p, call.top_k) == (["a"], 0.5, 0.9, 5)
    assert (call.service_tier, call.reasoning_effort, call.extra) == ("default", "high", {"whatever": 1})
    assert call.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    }
    assert not call.stream


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]},
            "messages[0].content[0].source.url",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "b", "input": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
    ],
)
def test_a_mistake_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


def test_errors_of_tools_are_told_where_there_is_a_place() -> None:
    messages = AGENT["messages"]
    tools = AGENT["tools"]
    results = sent("anthropic", messages=messages, tools=tools)["messages"][2]["content"]
    assert [result.get("is_error") for result in results[:2]] == [None, True]
    blocks = sent("bedrock", messages=messages, tools=tools)["messages"][2]["content"]
    assert [block["toolResult"].get("status") for block in blocks if "toolResult" in block] == [None, "error"]


NAMES = st.sampled_from(
    """messages system tools tool_choice thinking metadata stop_sequences output_config temperature stream top_k
    max_tokens extra service_tier""".split()
)


@settings(max_examples=150, deadline=None)
@given(fields=st.dictionaries(NAMES, JSON, max_size=4))
def test_anything_is_a_call_or_a_refusal(fields: dict[str, Any]) -> None:
    assert all(map(is_clear, refusals(MESSAGES, {"model": "m", "max_tokens": 100, "messages": HI, **fields})))


def test_tokens_are_counted_here() -> None:
    fields = {name: value for name, value in AGENT.items() if name not in ("max_tokens", "stream", "metadata")}
    counted = MESSAGES.count_tokens(fields)["input_tokens"]
    assert 200 < counted < 1500
    assert MESSAGES.count_tokens({**fields, "tools": []})["input_tokens"] < counted
    with pytest.raises(ApiError) as caught:
        MESSAGES.count_tokens({"model": "m"})
    assert caught.value.param == "messages"


# --- answers ---


def put_together(body: bytes) -> dict[str, Any]:
    """The message that a stream makes, by Anthropic's rules: blocks one after the other, each begun and ended."""
    found = events(body)
    names = [line[7:].decode() for line in body.split(b"\n") if line.startswith(b"event: ")]
    assert names == [event["type"] for event in found]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    message = found[0]["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    opened: int | None = None
    pieces = ""
    for event in found[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert opened is None
                assert event["index"] == len(message["content"])
                opened, pieces = event["index"], ""
                message["content"].append(event["content_block"])
            case "content_block_delta":
                assert event["index"] == opened
                block, delta = message["content"][-1], event["delta"]
                match delta["type"]:
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case _:
                        pieces += delta["partial_json"]
            case "content_block_stop":
                assert event["index"] == opened
                opened = None
                if message["content"][-1]["type"] == "tool_use":
                    message["content"][-1]["input"] = json.loads(pieces or "{}")
            case "message_delta":
                assert opened is None
                message |= event["delta"]
                message["usage"] = event["usage"]
            case _:
                assert event == {"type": "ping"}
    return message


@pytest.mark.parametrize("name", [*WHOLE, "thinking"])
@scenario()
def test_every_answer(wire: Wire, name: str) -> None:
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    from tests.gateway.fronts.test_chat_answers import ANSWERS

    answer = ANSWERS[name]
    found = heard(decode(wire, wire.stream(answer)))
    bodies = [put_together(streamed(MESSAGES, wire, wire.stream(answer)))]
    bodies += [whole(MESSAGES, wire, upstream) for upstream in (wire.stream(answer), wire.whole(answer))]
    for body in bodies:
        assert (body["type"], body["role"], body["id"]) == ("message", "assistant", f"{wire.vendor}-1763640000123")
        texts = [block["text"] for block in body["content"] if block["type"] == "text"]
        assert "".join(texts) == found.text + found.refusal
        calls = [(block["name"], block["input"]) for block in body["content"] if block["type"] == "tool_use"]
        assert calls == [(name, json.loads(arguments)) for name, arguments in found.calls]
        thoughts = [block for block in body["content"] if block["type"] == "thinking"]
        assert [block["thinking"] for block in thoughts] == ([found.thinking] if found.thinking else [])
        assert [block["signature"] for block in thoughts if block["signature"]] == found.signatures
        if found.usage is not None:
            usage = body["usage"]
            prompt = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
            assert (prompt, usage["output_tokens"]) == (found.usage.prompt_tokens, found.usage.completion_tokens)
        reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
        meant = "refusal" if found.refusal else reasons[found.finish or ""]
        assert body["stop_reason"] == ("end_turn" if found.raw == "content_filtered" else meant)


@scenario("parallel_tools")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_split_of_the_endpoints_bytes_gives_the_client_the_same(wire: Wire, data: st.DataObject) -> None:
    body = wire.stream(CALLS)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=12)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert without_ids(streamed(MESSAGES, wire, *pieces)) == without_ids(streamed(MESSAGES, wire, body))


def without_ids(body: bytes) -> list[Any]:
    found = events(body)
    for event in found:
        event.get("content_block", {}).pop("id", None)
    return found


@pytest.mark.behaviour("FR-18")
@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (Finish("content_filter", raw="guardrail_intervened"), "end_turn"),
        (Finish("content_filter", raw="content_filtered"), "end_turn"),
        (Finish("stop", raw="something_new"), "end_turn"),
        (Finish("stop"), "end_turn"),
        (Finish("stop", raw="stop_sequence"), "stop_sequence"),
        (Finish("stop", raw="pause_turn"), "pause_turn"),
        (Finish("length", raw="model_context_window_exceeded"), "model_context_window_exceeded"),
        (Finish("length"), "max_tokens"),
        (Finish("tool_calls"), "tool_use"),
        (Finish("content_filter", raw="SAFETY"), "refusal"),
    ],
)
def test_stop_reasons(finish: Finish, reason: str) -> None:
    assert MESSAGES.whole([finish], about())["stop_reason"] == reason
    assert put_together(written(MESSAGES, [finish]))["stop_reason"] == reason


def test_the_text_that_stopped_it() -> None:
    finish = Finish("stop", raw="stop_sequence", stop_sequence="END")
    assert MESSAGES.whole([finish], about())["stop_sequence"] == "END"
    assert put_together(written(MESSAGES, [finish]))["stop_sequence"] == "END"


def test_several_thoughts() -> None:
    chunks: list[Chunk] = [
        ThinkingDelta("a"),
        ThinkingDelta("b"),
        ThinkingDelta("", "s1"),
        ThinkingDelta("c"),
        ThinkingDelta("", "s2"),
        RedactedThinking("r"),
        Extra("groundingMetadata", {}),
        TextDelta("t"),
        RefusalDelta("no"),
        Finish("stop", Usage(100, 5, 20, 0, 30)),
    ]
    body = put_together(written(MESSAGES, chunks))
    assert body["content"][:3] == [
        {"type": "thinking", "thinking": "ab", "signature": "s1"},
        {"type": "thinking", "thinking": "c", "signature": "s2"},
        {"type": "redacted_thinking", "data": "r"},
    ]
    assert "".join(block["text"] for block in body["content"][3:]) == "tno"
    assert MESSAGES.whole(chunks, about())["content"][:3] == body["content"][:3]
    assert body["usage"] == {
        "input_tokens": 50,
        "cache_creation_input_tokens": 30,
        "cache_read_input_tokens": 20,
        "output_tokens": 5,
    }
    assert body["stop_reason"] == "refusal"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_calls_in_turns_are_put_in_order(data: st.DataObject) -> None:
    """Some servers write parallel calls piece by piece in turns; the format has one block at a time."""
    calls = data.draw(st.lists(st.text(alphabet='{}"[]a1:,', max_size=6), min_size=1, max_size=4))
    arguments = [json.dumps({"x": text}) for text in calls]
    rest = [[arguments[i][at : at + 3] for at in range(0, len(arguments[i]), 3)] for i in range(len(calls))]
    chunks: list[Chunk] = []
    begun = 0
    while begun < len(calls) or any(rest):
        open = [i for i in range(begun) if rest[i]]
        index = data.draw(st.sampled_from([*open, *([begun] if begun < len(calls) else [])]))
        if index == begun:
            chunks.append(ToolCallDelta(index, f"id{index}", f"f{index}"))
            begun += 1
        else:
            chunks.append(ToolCallDelta(index, arguments=rest[index].pop(0)))
        if data.draw(st.integers(0, 5)) == 0:
            chunks.append(TextDelta("t"))
    chunks.append(Finish("tool_calls"))
    body = put_together(written(MESSAGES, chunks))
    blocks = [block for block in body["content"] if block["type"] == "tool_use"]
    assert [(block["id"], block["input"]) for block in blocks] == [
        (f"id{i}", json.loads(arguments[i])) for i in range(len(calls))
    ]
    texts = "".join(block["text"] for block in body["content"] if block["type"] == "text")
    assert texts == "t" * sum(isinstance(chunk, TextDelta) for chunk in chunks)


@pytest.mark.behaviour("STM-07", "STM-10")
def test_a_stream_that_breaks() -> None:
    encoder = MESSAGES.encoder(about())
    encoder.feed(TextDelta("Half"))
    body = encoder.error("Overloaded", "overloaded", None)
    assert body.startswith(b"event: error\n")
    assert events(body) == [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}]


@pytest.mark.behaviour("CCH-06")
@pytest.mark.parametrize("name", ["calls", "thinking", "unicode", "plain"])
@scenario()
def test_a_kept_answer_is_replayed(wire: Wire, name: str) -> None:
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    from tests.gateway.fronts.test_chat_answers import ANSWERS

    kept = whole(MESSAGES, wire, wire.whole(ANSWERS[name]))
    assert put_together(MESSAGES.replay(kept, about(wire))) == kept


@pytest.mark.behaviour("CCH-06")
def test_a_long_answer_is_replayed_in_pieces() -> None:
    kept = MESSAGES.whole([TextDelta("x" * 1201), Finish("stop")], about())
    kept["content"].append({"type": "server_tool_use", "id": "a", "name": "web_search", "input": {"q": 1}})
    kept["content"].append({"type": "web_search_tool_result", "tool_use_id": "a", "content": []})
    found = events(MESSAGES.replay(kept, about()))
    texts = [event["delta"]["text"] for event in found if event.get("delta", {}).get("type") == "text_delta"]
    assert [len(text) for text in texts] == [500, 500, 201]
    assert found[-4]["index"] == 2
