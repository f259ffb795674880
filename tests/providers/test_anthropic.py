"""Anthropic's dialect beyond the conformance suite: what a model can and cannot, and the liberties of its wire."""

import json
from typing import Any

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.anthropic import Anthropic
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Finish,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    RefusalDelta,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.providers.conformance.suite import bare

NEW, OLD, OLDEST = "claude-sonnet-4-6", "claude-sonnet-4-20250514", "claude-3-5-haiku-20241022"
USER = ChatMessage(role="user", content="Hi")
TOOL = FunctionTool(name="f")
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def target(**more: Any) -> Target:
    row = CATALOGUE["anthropic"]
    return Target(vendor=row, **{"base_url": row.base_url, "api_key": "k", **more})


def sent(model: str = NEW, *messages: ChatMessage, to: Target | None = None, **more: Any) -> dict[str, Any]:
    call = Chat(model=model, messages=list(messages) or [USER], **more)
    return json.loads(Anthropic().request(call, to or target()).body)


def refused(model: str = NEW, *messages: ChatMessage, **more: Any) -> str:
    with pytest.raises(ProviderError) as caught:
        sent(model, *messages, **more)
    assert caught.value.kind == "invalid"
    return caught.value.message


# --- the request ---


def test_the_smallest_request() -> None:
    assert sent() == {
        "model": NEW,
        "max_tokens": 128_000,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "stream": True,
    }


@pytest.mark.parametrize("base", ["https://x.test", "https://x.test/", "https://x.test/v1", "https://x.test/v1/"])
def test_addresses(base: str) -> None:
    call = Chat(model=NEW, messages=[USER])
    assert Anthropic().request(call, target(base_url=base)).url == "https://x.test/v1/messages"


def test_no_key_no_header_and_extra_headers() -> None:
    beta = {"anthropic-beta": "context-1m-2025-08-07"}
    made = Anthropic().request(Chat(model=NEW, messages=[USER]), target(api_key=None, headers=beta))
    assert "x-api-key" not in made.headers
    assert made.headers["anthropic-beta"] == "context-1m-2025-08-07"


@pytest.mark.parametrize(
    ("model", "asked", "told"),
    [
        (NEW, None, 128_000),
        (OLD, None, 64_000),
        (OLDEST, None, 8192),
        ("claude-3-opus-20240229", None, 4096),
        ("glm-5", None, 4096),
        (OLDEST, 500, 500),
        (OLDEST, 1_000_000, 8192),
        ("glm-5", 1_000_000, 1_000_000),
    ],
)
def test_max_tokens(model: str, asked: int | None, told: int) -> None:
    assert sent(model, max_completion_tokens=asked)["max_tokens"] == told


def test_temperature_ends_at_one() -> None:
    """GATEWAY TR-02."""
    assert [sent(temperature=value)["temperature"] for value in (0, 1, 1.01, 2)] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("roles", "turns"),
    [
        (["assistant"], ["assistant", "user"]),
        (["assistant", "user", "assistant"], ["assistant", "user", "assistant", "user"]),
        (["system"], ["user"]),
        (["user", "system"], ["user"]),
    ],
)
def test_the_last_turn_is_a_users(roles: list[Any], turns: list[str]) -> None:
    made = sent(NEW, *(ChatMessage(role=role, content=role) for role in roles))["messages"]
    assert [turn["role"] for turn in made] == turns
    assert Anthropic().request(Chat(model="", messages=[]), target()).body  # the doctor asks no more than this


def test_what_the_model_wrote_as_arguments_need_not_be_an_object() -> None:
    texts = ["", "{}", '{"a": 1}', "[1]", '{"a": ']
    calls = [ToolCall(f"functions.f:{at}", "f", text) for at, text in enumerate(texts)]
    outputs = [ChatMessage(role="tool", content="x", tool_call_id=call.id) for call in calls]
    _, called, results = sent(NEW, USER, ChatMessage(role="assistant", tool_calls=calls), *outputs)["messages"]
    assert [block["input"] for block in called["content"]] == [
        {},
        {},
        {"a": 1},
        {"arguments": "[1]"},
        {"arguments": '{"a": '},
    ]
    ids = [block["id"] for block in called["content"]]
    assert ids == [block["tool_use_id"] for block in results["content"]]
    assert ids[0] == "functions_f_0"


def test_pictures() -> None:
    """GATEWAY TR-14."""

    def source(url: str) -> dict[str, Any]:
        return sent(NEW, ChatMessage(role="user", content=[ImagePart(ImageUrl(url))]))["messages"][0]["content"][0]

    assert source("DATA:image/PNG;charset=x;base64,QQ==")["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": "QQ==",
    }
    assert source("data:image/png,%41")["source"]["data"] == "QQ=="
    assert source("data:application/pdf;base64,QQ==")["type"] == "document"
    broken = ChatMessage(role="user", content=[ImagePart(ImageUrl("data:image/png"))])
    assert refused(NEW, broken).startswith("image_url: expected")
    assert "system" in refused(NEW, ChatMessage(role="system", content=[ImagePart(ImageUrl("https://x"))]), USER)


def test_a_tool_result_may_hold_a_picture() -> None:
    call = ChatMessage(role="assistant", tool_calls=[ToolCall("a", "f", "{}")])
    result = ChatMessage(role="tool", content=[ImagePart(ImageUrl("https://x/y.png"))], tool_call_id="a")
    block = sent(NEW, USER, call, result)["messages"][2]["content"][0]
    assert block["content"] == [{"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}]


def test_a_strict_function() -> None:
    made = sent(tools=[FunctionTool(name="f", parameters=SCHEMA, strict=True)])["tools"]
    assert made == [{"name": "f", "input_schema": SCHEMA, "strict": True}]


def test_fields_that_a_target_drops() -> None:
    to = target(drop=frozenset({"temperature", "stop", "reasoning_effort", "tool_choice", "max_tokens", "model"}))
    more: dict[str, Any] = {"temperature": 0.5, "stop": ["x"], "reasoning_effort": "low", "top_p": 0.5}
    body = sent(to=to, tools=[TOOL], tool_choice="none", **more)
    assert body.keys() == {"model", "max_tokens", "messages", "stream", "top_p"}
    assert sent(to=target(drop=frozenset({"stop_sequences"})), stop=["x"]).keys() == sent().keys()


# --- formats ---


def test_objects_of_a_schema_are_closed() -> None:
    inner = {"type": "object", "properties": {"type": {"type": "object"}, "b": {"enum": [{"type": "object"}]}}}
    schema = {
        "type": "object",
        "properties": {"list": {"type": "array", "items": inner}, "any": {"anyOf": [inner, {"type": "null"}]}},
        "additionalProperties": True,
        "$defs": {"object": {"type": "object"}},
    }
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = sent(response_format=given)["output_config"]["format"]["schema"]
    assert made["additionalProperties"] is True
    closed = made["properties"]["list"]["items"]
    assert closed["additionalProperties"] is False
    assert closed["properties"]["type"] == {"type": "object", "additionalProperties": False}
    assert closed["properties"]["b"] == {"enum": [{"type": "object"}]}
    assert made["properties"]["any"]["anyOf"] == [closed, {"type": "null"}]
    assert made["$defs"]["object"]["additionalProperties"] is False
    assert "additionalProperties" not in schema["$defs"]["object"]


@pytest.mark.parametrize(
    ("tools", "choice", "made"),
    [
        ([], None, {"type": "tool", "name": "loomgate_answer"}),
        ([TOOL], None, {"type": "any"}),
        ([TOOL], "auto", {"type": "any"}),
        ([TOOL], "required", {"type": "any"}),
        ([TOOL], "none", {"type": "tool", "name": "loomgate_answer"}),
        ([TOOL], NamedFunction("f"), {"type": "tool", "name": "f"}),
    ],
)
def test_a_schema_as_a_tool(tools: list[FunctionTool], choice: Any, made: dict[str, Any]) -> None:
    body = sent(OLD, tools=tools, tool_choice=choice, response_format=FORMAT)
    assert body["tool_choice"] == {**made, "disable_parallel_tool_use": True}
    assert [tool["name"] for tool in body["tools"]] == [tool.name for tool in tools] + ["loomgate_answer"]
    assert body["tools"][-1]["input_schema"] == SCHEMA


def test_nobody_else_may_have_the_name_of_that_tool() -> None:
    assert refused(tools=[FunctionTool(name="loomgate_answer")]).startswith("tools: expected")


def test_json_mode_is_asked_for() -> None:
    system = ChatMessage(role="system", content="Be brief.")
    said = [block["text"] for block in sent(NEW, system, USER, response_format={"type": "json_object"})["system"]]
    assert said[0] == "Be brief."
    assert "JSON object" in said[1]


# --- thinking ---


def thought(model: str, effort: str | None, **more: Any) -> tuple[Any, Any]:
    body = sent(model, reasoning_effort=effort, **more)
    return body.get("output_config", {}).get("effort"), body.get("thinking")


ADAPTIVE = {"type": "adaptive"}


@pytest.mark.parametrize(
    ("model", "effort", "level", "thinking"),
    [
        (NEW, None, None, None),
        (NEW, "none", None, None),
        (NEW, "minimal", "low", ADAPTIVE),
        (NEW, "xhigh", "high", ADAPTIVE),
        (NEW, "max", "max", ADAPTIVE),
        ("claude-opus-4-7", "xhigh", "xhigh", ADAPTIVE),
        ("claude-opus-5", "none", None, {"type": "disabled"}),
        ("claude-opus-5", None, None, None),
        ("claude-haiku-5-5", "none", None, {"type": "disabled"}),
        ("claude-sonnet-5-5", "none", None, {"type": "between_tools"}),
        ("claude-opus-5-5", "low", "low", ADAPTIVE),
        ("claude-opus-4-5-20251101", "max", "high", {"type": "enabled", "budget_tokens": 32_000}),
        ("claude-haiku-4-5", "minimal", None, {"type": "enabled", "budget_tokens": 1024}),
        (OLD, "none", None, None),
        (OLD, "high", None, {"type": "enabled", "budget_tokens": 16_384}),
        (OLDEST, "none", None, None),
    ],
)
def test_effort(model: str, effort: str | None, level: str | None, thinking: Any) -> None:
    assert thought(model, effort) == (level, thinking)


def test_a_budget_leaves_half_for_the_answer() -> None:
    assert thought(OLD, "high", max_completion_tokens=6000) == (None, {"type": "enabled", "budget_tokens": 3000})
    assert thought(OLD, "high", max_completion_tokens=2000) == (None, None)


def test_no_thinking_while_a_tool_must_be_called() -> None:
    forced: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}
    assert thought(NEW, "high", **forced) == ("high", None)
    assert thought(OLD, "high", **forced) == (None, None)
    assert thought(OLD, "high", response_format=FORMAT) == (None, None)
    assert thought("claude-opus-5", None, **forced) == (None, {"type": "disabled"})
    assert thought("claude-opus-5", "max", **forced) == ("high", {"type": "disabled"})
    assert thought(NEW, "high", tools=[TOOL], tool_choice="auto") == ("high", ADAPTIVE)


def test_no_budget_within_a_turn_that_has_called_tools() -> None:
    called = ChatMessage(role="assistant", tool_calls=[ToolCall("a", "f", "{}")])
    result = ChatMessage(role="tool", content="1", tool_call_id="a")
    done = ChatMessage(role="assistant", content="1.")
    for model, within in ((OLD, None), (NEW, ADAPTIVE)):
        assert sent(model, USER, called, result, tools=[TOOL], reasoning_effort="low").get("thinking") == within
        later = sent(model, USER, called, result, done, USER, tools=[TOOL], reasoning_effort="low")
        assert "thinking" in later


def test_efforts_that_cannot_be_made() -> None:
    assert "not known to reason" in refused(OLDEST, reasoning_effort="low")
    assert "always reasons" in refused("claude-fable-5-1", reasoning_effort="none")
    assert "found 'much'" in refused(reasoning_effort="much")


# --- the answer ---


def event(type: str, **fields: Any) -> bytes:
    return f"event: {type}\ndata: {json.dumps({'type': type, **fields})}\n\n".encode()


def start(index: int, **block: Any) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def more(index: int, type: str, **delta: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": type, **delta})


def end(reason: str | None = "end_turn", details: Any = None, **usage: int) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, "stop_details": details}, usage=usage)


STOP = event("message_stop")


def decode(*pieces: bytes) -> list[Chunk]:
    decoder = Anthropic().decoder()
    return bare([chunk for piece in pieces for chunk in decoder.feed(piece)] + list(decoder.end()))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("tool_use", "stop"),  # of a tool that is not the client's
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_finish_reasons(theirs: str, ours: str) -> None:
    """GATEWAY FR-10."""
    assert decode(end(theirs), STOP) == [Finish(ours, None)]  # pyright: ignore[reportArgumentType]


def test_usage_is_told_bit_by_bit() -> None:
    """GATEWAY TR-17: the total includes what was written to the cache and read from it."""
    first = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 200,
        "cache_read_input_tokens": 3000,
        "output_tokens": 1,
    }
    begun = event("message_start", message={"id": "msg_1", "usage": first})
    assert decode(begun, end(output_tokens=50), STOP) == [Finish("stop", Usage(3210, 50, 3000, 0, 200))]
    later = end(None, output_tokens=60)
    assert decode(begun, end("max_tokens", output_tokens=50), later, STOP) == [
        Finish("length", Usage(3210, 60, 3000, 0, 200))
    ]


def test_a_refusal_without_an_explanation() -> None:
    assert decode(end("refusal", {"type": "refusal", "category": None, "explanation": None}), STOP) == [
        Finish("content_filter")
    ]
    assert decode(end("refusal", {"type": "refusal", "explanation": "No."}), STOP)[0] == RefusalDelta("No.")


def test_an_answer_as_a_tool_is_text() -> None:
    stream = [
        start(0, type="text", text="Hm. "),
        event("content_block_stop", index=0),
        start(1, type="tool_use", id="toolu_1", name="loomgate_answer", input={}),
        more(1, "input_json_delta", partial_json='{"a":'),
        more(1, "input_json_delta", partial_json='"b"}'),
        event("content_block_stop", index=1),
        end("tool_use"),
        STOP,
    ]
    assert decode(*stream) == [TextDelta("Hm. "), TextDelta('{"a":'), TextDelta('"b"}'), Finish("stop")]


def test_what_is_new_or_somebody_elses_is_left_out() -> None:
    stream = [
        event("brand_new", what={"is": ["this"]}),
        start(0, type="server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        more(0, "input_json_delta", partial_json='{"query":"x"}'),
        event("content_block_stop", index=0),
        start(1, type="web_search_tool_result", tool_use_id="srvtoolu_1", content=[]),
        event("content_block_stop", index=1),
        start(2, type="text", text="", citations=[]),
        more(2, "citations_delta", citation={"type": "char_location"}),
        more(2, "text_delta", text="Yes"),
        event("content_block_stop", index=2),
        end(),
        STOP,
        event("error", error={"type": "api_error", "message": "too late"}),
    ]
    assert decode(*stream) == [TextDelta("Yes"), Finish("stop")]


def test_one_json_object_instead_of_a_stream() -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "Yes."},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
    ]
    usage = {"input_tokens": 3, "output_tokens": 5}
    body = json.dumps({"type": "message", "content": content, "stop_reason": "tool_use", "usage": usage}).encode()
    assert decode(b"\n", body[:20], body[20:]) == [
        ThinkingDelta("hm", "x"),
        TextDelta("Yes."),
        ToolCallDelta(0, "toolu_1", "f", ""),
        ToolCallDelta(0, None, None, '{"a":1}'),
        ToolCallDelta(1, "toolu_2", "g", ""),
        ToolCallDelta(1, None, None, "{}"),
        Finish("tool_calls", Usage(3, 5)),
    ]


def test_ends() -> None:
    text = start(0, type="text", text="") + more(0, "text_delta", text="x")
    assert decode(text, end()) == [TextDelta("x"), Finish("stop")]  # a proxy that swallows the last event
    for nonsense in (
        start(0, type="tool_use", id="toolu_1", input={}),
        more(0, "input_json_delta", partial_json="{"),
        b"data: [DONE]\n\n",
        b'{"type": "message", "content": [',
    ):
        with pytest.raises(ProviderError) as caught:
            decode(nonsense)
        assert caught.value.kind == "malformed"


@pytest.mark.parametrize(
    ("type", "kind"),
    [
        ("overloaded_error", "overloaded"),
        ("rate_limit_error", "rate_limit"),
        ("invalid_request_error", "invalid"),
        ("timeout_error", "timeout"),
        ("something_new", "server"),
    ],
)
def test_errors_within_a_stream(type: str, kind: str) -> None:
    with pytest.raises(ProviderError) as caught:
        decode(event("error", error={"type": type, "message": "Bad sk-ant-0123456789abcdef"}))
    assert (caught.value.kind, caught.value.message) == (kind, "Bad sk-***")


@pytest.mark.parametrize(
    ("status", "type", "message", "kind"),
    [
        (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", "quota"),
        (402, "billing_error", "Payment", "quota"),
        (403, "permission_error", "No", "auth"),
        (404, "not_found_error", "model: claude-9", "model_not_found"),
        (413, "request_too_large", "Request exceeds the maximum size", "invalid"),
        (504, "timeout_error", "Timed out", "timeout"),
    ],
)
def test_error_answers(status: int, type: str, message: str, kind: str) -> None:
    """GATEWAY GERR-02."""
    body = json.dumps({"type": "error", "error": {"type": type, "message": message}}).encode()
    error = Anthropic().error(status, {}, body)
    assert (error.kind, error.status, error.message) == (kind, status, message)
