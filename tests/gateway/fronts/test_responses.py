"""OpenAI's Responses before endpoints that speak other formats, judged by the official client."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import openai
import pydantic
import pytest

from loomgate.errors import ApiError
from loomgate.gateway.fronts.responses import ResponsesFront
from loomgate.settings import Provider, Secret
from loomgate.wire.chat import (
    ChatMessage,
    Chunk,
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
from tests.gateway.fronts.kit import about, events, written
from tests.providers.conformance.replay import Canned, Replay
from tests.support.server import Server

pytestmark = pytest.mark.anyio

FRONT = ResponsesFront()
SPOKEN: list[Chunk] = [
    ThinkingDelta("Hm, "),
    ThinkingDelta("well.", "seal"),
    RedactedThinking("enc"),
    TextDelta("Let me "),
    TextDelta("look: 世界."),
    ToolCallDelta(0, "toolu_a", "weather"),
    ToolCallDelta(0, arguments='{"city":'),
    ToolCallDelta(1, "toolu_b", "now", "{}"),
    ToolCallDelta(0, arguments='"Berlin"}'),
    Finish("tool_calls", Usage(30, 12, 8, 4, 2), "tool_use"),
]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def sdk(server: Replay) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0)


def whole(chunks: list[Chunk], **asked: Any) -> dict[str, Any]:
    return json.loads(json.dumps(FRONT.whole(chunks, about(**asked))))


# --- answers ---


@pytest.mark.behaviour("RT-02")
async def test_a_whole_answer() -> None:
    made = whole(SPOKEN, instructions="Be brief.", temperature=0.5, metadata={"a": "b"})
    body = Canned(headers={"Content-Type": "application/json"}, body=json.dumps(made).encode())
    async with Replay(body) as server, sdk(server) as client:
        found = await client.responses.create(model="m", input="Hi")
    assert (found.status, found.output_text) == ("completed", "Let me look: 世界.")
    assert [item.type for item in found.output] == [
        "reasoning",
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    thought, sealed, _, call, _ = (item.to_dict() for item in found.output)
    assert (thought["summary"], thought["encrypted_content"]) == (
        [{"type": "summary_text", "text": "Hm, well."}],
        "seal",
    )
    assert (sealed["summary"], sealed["encrypted_content"]) == ([], "enc")
    assert (call["call_id"], call["name"], call["arguments"]) == ("toolu_a", "weather", '{"city":"Berlin"}')
    assert found.usage is not None
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (30, 12, 42)
    assert found.usage.input_tokens_details.cached_tokens == 8
    assert found.usage.output_tokens_details.reasoning_tokens == 4
    assert (found.instructions, found.temperature, found.metadata, found.store) == ("Be brief.", 0.5, {"a": "b"}, False)  # type: ignore[attr-defined]


@pytest.mark.behaviour("RT-02")
async def test_a_stream() -> None:
    stream = Canned(headers={"Content-Type": "text/event-stream"}, body=written(FRONT, SPOKEN))
    async with Replay(stream) as server, sdk(server) as client:
        async with client.responses.stream(model="m", input="Hi") as heard:
            kinds = [event.type async for event in heard]
            final = await heard.get_final_response()
        plain = [event async for event in await client.responses.create(model="m", input="Hi", stream=True)]
    assert (kinds[0], kinds[1], kinds[-1]) == ("response.created", "response.in_progress", "response.completed")
    assert final.output_text == "Let me look: 世界."
    assert [event.sequence_number for event in plain] == list(range(len(plain)))
    last: Any = plain[-1]
    assert last.response.to_dict() == whole(SPOKEN)
    assert [item.arguments for item in final.output if item.type == "function_call"] == ['{"city":"Berlin"}', "{}"]


def test_the_sequence_of_events() -> None:
    found = events(written(FRONT, [TextDelta("a"), TextDelta("b"), RefusalDelta("no"), Finish("length", Usage(1, 2))]))
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "content_part.added",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert found[6]["text"] == "ab"
    assert {event["item_id"] for event in found[3:12]} == {found[2]["item"]["id"]}
    assert [event.get("content_index") for event in found[3:12]] == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    response = found[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"] == [found[-2]["item"]]


def test_a_stream_that_breaks() -> None:
    encoder = FRONT.encoder(about())
    begun = encoder.feed(TextDelta("a"))
    found = events(begun + encoder.error("It broke.", "api_error", "cut"))
    assert (found[-1]["type"], found[-1]["message"], found[-1]["code"]) == ("error", "It broke.", "cut")


def test_what_was_kept_is_told_again() -> None:
    answer = whole(SPOKEN, temperature=1)
    last = events(FRONT.replay(answer, about()))[-1]
    assert last["type"] == "response.completed"
    assert last["response"] == answer


# --- requests ---


def test_a_conversation() -> None:
    call = FRONT.chat(
        {
            "model": "m",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"},
                                             {"type": "input_image", "image_url": "https://a/b"}]},
                {"type": "reasoning", "id": "rs_1", "encrypted_content": "seal",
                 "summary": [{"type": "summary_text", "text": "Hm"}]},
                {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "enc"},
                {"type": "message", "role": "assistant",
                 "content": [{"type": "output_text", "text": "Yes", "annotations": []}]},
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "1"},
                {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
                {"role": "assistant", "content": "Done"},
                {"role": "user", "content": "Thanks"},
            ],
        }
    )  # fmt: skip
    assert call.messages == [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content=[TextPart("Hi"), ImagePart(ImageUrl("https://a/b"))]),
        ChatMessage(
            role="assistant",
            content=[ThinkingPart("Hm", "seal"), RedactedThinkingPart("enc"), TextPart("Yes")],
            tool_calls=[ToolCall("c1", "f", "{}"), ToolCall("c2", "g", "{}")],
        ),
        ChatMessage(role="tool", content="1", tool_call_id="c1"),
        ChatMessage(role="tool", content=[TextPart("2")], tool_call_id="c2"),
        ChatMessage(role="assistant", content="Done"),
        ChatMessage(role="user", content="Thanks"),
    ]


def test_everything_else() -> None:
    schema = {"type": "object"}
    call = FRONT.chat(
        {
            "model": "m",
            "input": "Hi",
            "tools": [{"type": "function", "name": "f", "parameters": schema, "strict": True}],
            "tool_choice": {"type": "function", "name": "f"},
            "parallel_tool_calls": False,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
            "reasoning": {"effort": "low"},
            "max_output_tokens": 9,
            "temperature": 0.5,
            "top_p": 0.25,
            "metadata": {"a": "b"},
            "store": False,
            "prompt_cache_key": "k",
            "unheard_of": 1,
        }
    )
    assert call.tools == [FunctionTool(name="f", parameters=schema, strict=True)]
    assert call.tool_choice == NamedFunction("f")
    assert call.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }
    assert (call.reasoning_effort, call.max_completion_tokens, call.temperature, call.top_p) == ("low", 9, 0.5, 0.25)
    assert (call.parallel_tool_calls, call.metadata, call.stream) == (False, {"a": "b"}, False)
    assert call.extra == {"unheard_of": 1}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": []}, "input"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        FRONT.chat({"model": "m", "input": "Hi", **fields})
    assert (caught.value.status, caught.value.param) == (400, param)


# --- over HTTP ---


@pytest.fixture
async def vendor() -> AsyncIterator[Replay]:
    async with Replay(Canned()) as made:
        yield made


class Place(pydantic.BaseModel):
    """What the parsed answer is."""

    city: str


@pytest.mark.behaviour("RT-02")
async def test_the_official_client_and_another_vendor(make_server: Callable[..., Server], vendor: Replay) -> None:
    address = {"base_url": vendor.base_url + "/v1", "api_key": Secret("sk-operator-0123456789")}
    providers = {
        "anthropic": Provider(name="anthropic", vendor="anthropic", **address),
        "openai": Provider(name="openai", vendor="openai", **address),
    }
    made = make_server(key=True, providers=providers)
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": '{"city":"Berlin"}'}], "usage": {"input_tokens": 3, "output_tokens": 4},
    }  # fmt: skip
    vendor.play(Canned(headers={"Content-Type": "application/json"}, body=json.dumps(message).encode()))
    async with openai.AsyncOpenAI(api_key=made.key, base_url=f"{made.url}/v1", max_retries=0) as client:
        found = await client.responses.parse(model="claude-opus-4-5", input="Where?", text_format=Place)
        assert found.output_parsed == Place(city="Berlin")
        assert vendor.asked[0].target == "/v1/messages"
        async with client.responses.stream(model="scripted", input="/say one two\n/call f {}") as heard:
            async for _ in heard:
                pass
            final = await heard.get_final_response()
        assert final.output_text == "one two"
        assert [item.type for item in final.output] == ["message", "function_call"]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="claude-opus-4-5", input="Hi", previous_response_id="resp_1")
        assert refused.value.param == "previous_response_id"
        # OpenAI speaks it: bytes pass, and what it keeps can be asked for.
        vendor.play(Canned(headers={"Content-Type": "application/json"}, body=json.dumps(whole(SPOKEN)).encode()))
        await client.responses.create(model="gpt-4o", input="Hi", previous_response_id="resp_1")
        named = {"x-portkey-provider": "openai"}
        await client.responses.retrieve("resp_1", extra_headers=named)
        await client.responses.cancel("resp_1", extra_headers=named)
        assert [asked.target for asked in vendor.asked] == [
            "/v1/responses",
            "/v1/responses/resp_1",
            "/v1/responses/resp_1/cancel",
        ]
        assert json.loads(vendor.asked[0].body)["previous_response_id"] == "resp_1"
