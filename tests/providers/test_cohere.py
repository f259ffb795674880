"""What is particular to Cohere: how text goes beside tool calls, choices, ranges, and its ways to fail."""

import json
from typing import Any

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.cohere import Cohere
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
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.providers.conformance.suite import bare
from tests.providers.conformance.wire_cohere import event, message

HI = ChatMessage(role="user", content="Hi")
TOOLS = [FunctionTool(name="f", strict=True), FunctionTool(name="g", description="G")]


def target(base_url: str = "https://api.cohere.ai", **more: Any) -> Target:
    return Target(vendor=CATALOGUE["cohere"], base_url=base_url, api_key="k", **more)


def sent(*messages: ChatMessage, **more: Any) -> dict[str, Any]:
    return json.loads(Cohere().request(Chat(model="m", messages=list(messages) or [HI], **more), target()).body)


def test_the_smallest_request() -> None:
    for base in ("https://api.cohere.ai", "https://api.cohere.ai/", "https://api.cohere.ai/v2"):
        call = Cohere().request(Chat(model="m", messages=[HI]), target(base))
        assert call.url == "https://api.cohere.ai/v2/chat"
        assert call.headers["Authorization"] == "Bearer k"
        assert json.loads(call.body) == {
            "model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True,
        }  # fmt: skip


def test_text_beside_tool_calls_is_their_plan() -> None:
    call = ToolCall("a", "f", "")
    said = ChatMessage(role="assistant", content="Let me look.", tool_calls=[call])
    result = ChatMessage(role="tool", content="4", tool_call_id="a")
    assert sent(HI, said, result)["messages"][1:] == [
        {
            "role": "assistant",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            "tool_plan": "Let me look.",
        },
        {"role": "tool", "tool_call_id": "a", "content": "4"},
    ]


def test_images_are_parts_as_openai_has_them() -> None:
    parts = [TextPart("See"), ImagePart(ImageUrl("https://x/y.png", "low")), ImagePart(ImageUrl("data:image/png,x"))]
    assert sent(ChatMessage(role="user", content=list(parts)))["messages"][0]["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/png,x"}},
    ]


def test_a_named_function_is_the_only_one_that_is_sent() -> None:
    made = sent(tools=TOOLS, tool_choice=NamedFunction("g"))
    assert [tool["function"]["name"] for tool in made["tools"]] == ["g"]
    assert made["tool_choice"] == "REQUIRED"
    assert "strict_tools" not in made
    with pytest.raises(ProviderError) as caught:
        sent(tools=TOOLS, tool_choice=NamedFunction("h"))
    assert caught.value.kind == "invalid"


def test_choices_and_strictness() -> None:
    assert sent(tools=TOOLS)["strict_tools"] is True
    assert "tool_choice" not in sent(tools=TOOLS, tool_choice="auto")
    assert sent(tools=TOOLS, tool_choice="none")["tool_choice"] == "NONE"


@pytest.mark.parametrize(("top_p", "p"), [(1.0, 0.99), (0.0, 0.01), (0.5, 0.5)])
def test_numbers_are_kept_in_coheres_range(top_p: float, p: float) -> None:
    """GATEWAY TR-02."""
    assert sent(top_p=top_p)["p"] == p


@pytest.mark.parametrize(("effort", "thinking"), [("none", "disabled"), ("low", "enabled"), ("high", "enabled")])
def test_thinking_is_on_or_off(effort: str, thinking: str) -> None:
    assert sent(reasoning_effort=effort)["thinking"] == {"type": thinking}


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (404, "model 'x' not found, make sure the correct model ID was used", "model_not_found"),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month.", "quota"),
        (429, "You are past the per minute request limit.", "rate_limit"),
        (422, "invalid role", "invalid"),
        (498, "blocked output", "invalid"),
        (504, "gateway timeout", "timeout"),
    ],
)
def test_errors(status: int, message: str, kind: str) -> None:
    error = Cohere().error(status, {}, json.dumps({"message": message}).encode())
    assert (error.kind, error.status, error.message) == (kind, status, message)


def read(*events: bytes) -> tuple[list[Chunk], ProviderError | None]:
    decoder = Cohere().decoder()
    found: list[Chunk] = []
    try:
        for chunk in decoder.feed(b"".join(events)):
            found.append(chunk)
        for chunk in decoder.end():
            found.append(chunk)
    except ProviderError as error:
        return found, error
    return bare(found), None


TEXT = event("content-delta", index=0, delta=message(content={"text": "Hi"}))


@pytest.mark.parametrize(
    ("told", "reason"),
    [("COMPLETE", "stop"), ("STOP_SEQUENCE", "stop"), ("MAX_TOKENS", "length"), ("TOOL_CALL", "stop"), ("NEW", "stop")],
)
def test_finish_reasons(told: str, reason: str) -> None:
    """GATEWAY FR-01, FR-17."""
    end = event("message-end", delta={"finish_reason": told})
    assert read(TEXT, end) == ([TextDelta("Hi"), Finish(reason)], None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("told", "kind"), [("ERROR", "server"), ("TIMEOUT", "timeout")])
def test_an_answer_that_failed_is_an_error(told: str, kind: str) -> None:
    """GATEWAY FR-17 is not copied: it would take half an answer for a whole one."""
    found, error = read(TEXT, event("message-end", delta={"finish_reason": told}))
    assert found == [TextDelta("Hi")]
    assert error is not None
    assert error.kind == kind


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"billed_units": {"input_tokens": 5, "output_tokens": 2}}, Usage(5, 2)),
        ({"billed_units": {"input_tokens": 5}, "tokens": {"input_tokens": 71.0, "output_tokens": 9.0}}, Usage(71, 9)),
        ({"tokens": {"input_tokens": 71}, "cached_tokens": 64}, Usage(71, 0, 64)),
        ({}, None),
    ],
)
def test_usage(told: dict[str, Any], usage: Usage | None) -> None:
    end = event("message-end", delta={"finish_reason": "COMPLETE", "usage": told})
    assert read(end) == ([Finish("stop", usage)], None)


def test_a_call_whose_arguments_come_at_once_or_never() -> None:
    whole = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    empty = {"id": "b", "type": "function", "function": {"name": "g"}}
    found, error = read(
        event("tool-call-start", index=0, delta=message(tool_calls=whole)),
        event("tool-call-end", index=0),
        event("tool-call-start", index=1, delta=message(tool_calls=empty)),
        event("message-end", delta={"finish_reason": "TOOL_CALL"}),
    )
    assert error is None
    assert found == [
        ToolCallDelta(0, "a", "f", '{"x":1}'),
        ToolCallDelta(1, "b", "g"),
        ToolCallDelta(1, arguments="{}"),
        Finish("tool_calls"),
    ]


@pytest.mark.parametrize(
    "data",
    [
        event("tool-call-delta", index=0, delta=message(tool_calls={"function": {"arguments": "{}"}})),
        event("tool-call-start", index=0, delta=message(tool_calls={"id": "a"})),
        b'data: {"no": "type"}\n\n',
    ],
)
def test_events_that_make_no_sense(data: bytes) -> None:
    error = read(data)[1]
    assert error is not None
    assert error.kind == "malformed"
