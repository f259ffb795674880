"""Chats and completions that one vendor alone speaks: documented bytes both ways, over a real connection."""

import json
from collections.abc import Iterable
from typing import Any, cast

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Dialect, HttpCall, Target
from loomgate.providers.operations import dialect_of, operation
from loomgate.providers.transport import Timeouts, Transport
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Finish,
    FinishReason,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from loomgate.wire.endpoints import EndpointName
from tests.providers.conformance.replay import Asked, Canned, Replay

pytestmark = pytest.mark.anyio

OPTIONS = {"workers_ai_account_id": "acc", "oracle_region": "eu-frankfurt-1", "oracle_compartment_id": "ocid1.c"}
TALK = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Hi"),
    ChatMessage(role="assistant", content="Yes?"),
    ChatMessage(role="user", content="Grüße"),
]
PROMPT = [ChatMessage(role="user", content="Once upon")]


def chat(model: str = "m", messages: list[ChatMessage] | None = None, **more: Any) -> Chat:
    more = {"temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 7, **more}
    return Chat(model=model, messages=messages or TALK, **{key: each for key, each in more.items() if each is not ...})


def target(vendor: str, base_url: str = "http://h") -> Target:
    return Target(
        vendor=CATALOGUE[vendor], base_url=base_url, api_key="the-key", options=OPTIONS, project="p", region="us-east5"
    )


def dialect(vendor: str, model: str, endpoint: EndpointName = "chat") -> Dialect:
    found = dialect_of(target(vendor), model, endpoint)
    assert found is not None
    return found


def requested(vendor: str, call: Chat, endpoint: EndpointName = "chat") -> HttpCall:
    return dialect(vendor, call.model, endpoint).request(call, target(vendor))


async def exchanged(
    vendor: str, call: Chat, answer: bytes, endpoint: EndpointName = "chat", piece: int = 7
) -> tuple[Asked, list[Chunk]]:
    transport = Transport()
    speaks = dialect(vendor, call.model, endpoint)
    try:
        async with Replay(Canned(body=answer, piece=piece)) as server:
            to = target(vendor, server.base_url)
            async with await transport.send(speaks.request(call, to), Timeouts()) as reply:
                decoder, chunks = speaks.decoder(), list[Chunk]()
                while data := await reply.piece():
                    chunks += decoder.feed(data)
                chunks += decoder.end()
            return server.asked[0], chunks
    finally:
        await transport.close()


def events(*each: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in each)


def text(chunks: Iterable[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta))


def turns(who: str, what: str, *, you: str = "user", me: str = "assistant", first: str = "Hi") -> list[dict[str, str]]:
    """What `TALK` has after its system message: ``who`` and ``what`` are the vendor's members, ``you`` and ``me`` its
    roles."""
    return [{who: you, what: first}, {who: me, what: "Yes?"}, {who: you, what: "Grüße"}]


def case(
    id: str, statements: str, call: Chat, path: str, body: Any, answer: Any, reason: str, usage: Usage | None = None
) -> Any:
    """``id`` is the vendor, then "completion" if it is one; ``reason`` is ours, then the vendor's own."""
    vendor, _, kind = id.partition(" ")
    endpoint = "complete" if kind else "chat"
    ours, _, theirs = reason.partition(" ")
    end = Finish(cast("FinishReason", ours), usage, theirs or None)
    marks = pytest.mark.behaviour(*statements.split())
    return pytest.param(vendor, endpoint, call, path, body, answer, end, id=id, marks=marks)


BRIEF = {"role": "system", "content": "Be brief."}
TUNED = {"temperature": 0.5, "top_p": 0.9}
PLAIN: list[Any] = [
    case(
        "ai21",
        "PV-11",
        chat("j2-mid", stop=["!"]),
        "/j2-mid/chat",
        {
            "system": "Be brief.",
            "messages": turns("role", "text"),
            "temperature": 0.5,
            "topP": 0.9,
            "maxTokens": 7,
            "stopSequences": ["!"],
        },
        {"id": "i", "outputs": [{"text": "Ok.", "role": "assistant", "finishReason": {"reason": "length"}}]},
        "length length",
    ),
    case(
        "ai21 completion",
        "PV-11",
        chat("j2-mid", PROMPT),
        "/j2-mid/complete",
        {"prompt": "Once upon", "temperature": 0.5, "topP": 0.9, "maxTokens": 7},
        {"id": "i", "completions": [{"data": {"text": "Ok."}, "finishReason": {"reason": "endoftext"}}]},
        "stop endoftext",
    ),
    case(
        "palm",
        "PV-13",
        chat("models/chat-bison-001", temperature=2),
        "/models/chat-bison-001:generateMessage",
        {
            "prompt": {"context": "Be brief.", "messages": turns("author", "content")},
            "temperature": 1.0,
            "topP": 0.9,
        },
        {"candidates": [{"author": "1", "content": "Ok."}], "messages": []},
        "stop stop",
    ),
    case(
        "palm completion",
        "PV-13",
        chat("text-bison-001", PROMPT, stop=["!"]),
        "/models/text-bison-001:generateText",
        {
            "prompt": {"text": "Once upon"},
            "maxOutputTokens": 7,
            "stopSequences": ["!"],
            "temperature": 0.5,
            "topP": 0.9,
        },
        {"candidates": [{"output": "Ok.", "safetyRatings": []}]},
        "stop stop",
    ),
    case(
        "reka-ai",
        "PV-27",
        chat("reka-core", stop=["!"]),
        "/chat",
        {
            "model_name": "reka-core",
            "conversation_history": turns("type", "text", you="human", me="model", first="Be brief.\n\nHi"),
            "request_output_len": 7,
            "temperature": 0.5,
            "runtime_top_p": 0.9,
            "stop_words": ["!"],
        },
        {
            "type": "model",
            "text": "Ok.",
            "finish_reason": "length",
            "metadata": {"input_tokens": 11, "generated_tokens": 2},
        },
        "length length",
        Usage(11, 2),
    ),
    case(
        "bytez",
        "PV-58",
        chat("org/model"),
        "/models/v2/org/model",
        {
            "messages": [BRIEF, *turns("role", "content")],
            "stream": False,
            "params": {"max_new_tokens": 7, **TUNED},
        },
        {"error": None, "output": {"role": "assistant", "content": "Ok."}},
        "stop stop",
    ),
    case(
        "triton completion",
        "PV-36",
        chat("ensemble", PROMPT, max_completion_tokens=..., stop=["!"]),
        "/generate",
        {"text_input": "Once upon", "max_tokens": 100, **TUNED, "stop_words": ["!"]},
        {"model_name": "ensemble", "model_version": "1", "text_output": "Ok."},
        "stop stop",
    ),
    case(
        "cohere completion",
        "PV-10 TR-24",
        chat("command", PROMPT, top_p=1.0, stream=False),
        "/v1/generate",
        {"model": "command", "prompt": "Once upon", "stream": False, "max_tokens": 7, "temperature": 0.5, "p": 0.99},
        {
            "id": "i",
            "generations": [{"id": "g", "text": "Ok.", "finish_reason": "MAX_TOKENS"}],
            "prompt": "Once upon",
            "meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 3, "output_tokens": 7}},
        },
        "length MAX_TOKENS",
        Usage(3, 7),
    ),
    case(
        "workers-ai",
        "PV-26",
        chat("@cf/meta/llama-3.1-8b-instruct", stream=False),
        "/@cf/meta/llama-3.1-8b-instruct",
        {"messages": [BRIEF, *turns("role", "content")], "max_tokens": 7, **TUNED, "stream": False},
        {
            "result": {"response": "Ok.", "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}},
            "success": True,
            "errors": [],
            "messages": [],
        },
        "stop",
        Usage(9, 2),
    ),
    case(
        "workers-ai completion",
        "PV-26",
        chat("@cf/m", PROMPT),
        "/@cf/m",
        {"prompt": "Once upon", "max_tokens": 7, **TUNED, "stream": True},
        {"result": {"response": "Ok."}, "success": True, "errors": [], "messages": []},
        "stop",
    ),
]


@pytest.mark.parametrize(("vendor", "endpoint", "call", "path", "body", "answer", "end"), PLAIN)
async def test_whole_answers(
    vendor: str, endpoint: EndpointName, call: Chat, path: str, body: Any, answer: Any, end: Finish
) -> None:
    asked, chunks = await exchanged(vendor, call, json.dumps(answer).encode(), endpoint)
    assert asked.target == path
    assert json.loads(asked.body) == body
    assert text(chunks) == "Ok."
    assert chunks[-1] == end
    assert sum(isinstance(chunk, Finish) for chunk in chunks) == 1


# --- streams ---

GENERATED = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"is_finished": False, "event_type": "text-generation", "text": "O"},
        {"is_finished": False, "event_type": "text-generation", "text": "k."},
        {
            "is_finished": True,
            "event_type": "stream-end",
            "finish_reason": "COMPLETE",
            "response": {
                "id": "i",
                "generations": [{"id": "g", "text": "Ok.", "finish_reason": "COMPLETE"}],
                "meta": {"billed_units": {"input_tokens": 3, "output_tokens": 2}},
            },
        },
    )
)
WORKERS = (
    events(
        {"response": "O", "p": "abdefgh"},
        {"response": "k."},
        {"response": "", "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
    )
    + b"data: [DONE]\n\n"
)
ORACLE = events(
    {"index": 0, "message": {"role": "ASSISTANT", "content": [{"type": "TEXT", "text": "O"}]}, "pad": "aaa"},
    {"index": 0, "message": {"role": "ASSISTANT", "content": [{"type": "TEXT", "text": "k."}]}},
    {"message": {"role": "ASSISTANT"}, "finishReason": "length"},
    {"usage": {"promptTokens": 9, "completionTokens": 2, "totalTokens": 11}},
)

STREAMS: list[Any] = [
    pytest.param("cohere", "complete", GENERATED, Finish("stop", Usage(3, 2), "COMPLETE"), id="cohere"),
    pytest.param("workers-ai", "chat", WORKERS, Finish("stop", Usage(9, 2)), id="workers-ai"),
    pytest.param("workers-ai", "complete", WORKERS, Finish("stop", Usage(9, 2)), id="workers-ai completion"),
    pytest.param("oracle", "chat", ORACLE, Finish("length", Usage(9, 2), "length"), id="oracle"),
]


@pytest.mark.behaviour("STM-03")
@pytest.mark.parametrize("piece", [1, 13, 10_000])
@pytest.mark.parametrize(("vendor", "endpoint", "body", "end"), STREAMS)
async def test_streams(vendor: str, endpoint: EndpointName, body: bytes, end: Finish, piece: int) -> None:
    asked, chunks = await exchanged(vendor, chat(messages=PROMPT), body, endpoint, piece)
    sent = json.loads(asked.body)
    assert sent.get("stream") is True or sent["chatRequest"]["isStream"] is True
    assert chunks == [TextDelta("O"), TextDelta("k."), end]


@pytest.mark.parametrize(("vendor", "endpoint", "body", "end"), STREAMS)
def test_a_stream_that_breaks_is_no_answer(vendor: str, endpoint: EndpointName, body: bytes, end: Finish) -> None:
    for at in (len(body) // 3, 0):
        decoder = dialect(vendor, "m", endpoint).decoder()
        found = list(decoder.feed(body[:at]))
        assert end not in found
        with pytest.raises(ProviderError) as caught:
            found += decoder.end()
        assert caught.value.kind in ("cut", "malformed")


# --- Oracle ---

WEATHER = FunctionTool(name="weather", description="d", parameters={"type": "object"})


@pytest.mark.behaviour("PV-69", "RH-40")
async def test_oracles_generic_chat() -> None:
    messages = [
        ChatMessage(role="user", content=[ImagePart(ImageUrl("https://x/y.png"))]),
        ChatMessage(role="assistant", tool_calls=[ToolCall("c1", "weather", "{}")]),
        ChatMessage(role="tool", tool_call_id="c1", content="rain"),
    ]
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    call = chat(
        "meta.llama-3.3-70b-instruct",
        messages,
        tools=[WEATHER],
        tool_choice=NamedFunction("weather"),
        response_format=schema,
        stream=False,
    )
    answer = {
        "modelId": "meta.llama-3.3-70b-instruct",
        "modelVersion": "1.0.0",
        "chatResponse": {
            "apiFormat": "GENERIC",
            "timeCreated": "2025-01-01T00:00:00Z",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "ASSISTANT",
                        "content": [{"type": "TEXT", "text": "Ok."}],
                        "toolCalls": [{"id": "c2", "type": "FUNCTION", "name": "weather", "arguments": '{"a":1}'}],
                    },
                    "finishReason": "tool_calls",
                }
            ],
            "usage": {"promptTokens": 9, "completionTokens": 2, "totalTokens": 11},
        },
    }
    asked, chunks = await exchanged("oracle", call, json.dumps(answer).encode())
    assert asked.target == "/20231130/actions/chat"
    assert json.loads(asked.body) == {
        "compartmentId": "ocid1.c",
        "servingMode": {"servingType": "ON_DEMAND", "modelId": "meta.llama-3.3-70b-instruct"},
        "chatRequest": {
            "apiFormat": "GENERIC",
            "messages": [
                {
                    "role": "USER",
                    "content": [{"type": "IMAGE", "imageUrl": {"url": "https://x/y.png", "detail": "AUTO"}}],
                },
                {
                    "role": "ASSISTANT",
                    "content": [],
                    "toolCalls": [{"id": "c1", "type": "FUNCTION", "name": "weather", "arguments": "{}"}],
                },
                {"role": "TOOL", "content": [{"type": "TEXT", "text": "rain"}], "toolCallId": "c1"},
            ],
            "isStream": False,
            "maxTokens": 7,
            "temperature": 0.5,
            "topP": 0.9,
            "tools": [{"type": "FUNCTION", "name": "weather", "description": "d", "parameters": {"type": "object"}}],
            "toolChoice": {"type": "FUNCTION", "name": "weather"},
            "responseFormat": {
                "type": "JSON_SCHEMA",
                "jsonSchema": {"name": "n", "schema": {"type": "object"}, "isStrict": True},
            },
        },
    }
    assert chunks == [
        TextDelta("Ok."),
        ToolCallDelta(0, "c2", "weather", '{"a":1}'),
        Finish("tool_calls", Usage(9, 2), "tool_calls"),
    ]


def test_tool_calls_in_oracles_stream() -> None:
    decoder = dialect("oracle", "m").decoder()
    body = events(
        {"message": {"toolCalls": [{"id": "a", "type": "FUNCTION", "name": "f", "arguments": ""}]}},
        {"message": {"toolCalls": [{"type": "FUNCTION", "arguments": '{"x":'}]}},
        {"message": {"toolCalls": [{"type": "FUNCTION", "arguments": "1}"}]}},
        {"finishReason": "tool_calls"},
    )
    assert [*decoder.feed(body), *decoder.end()] == [
        ToolCallDelta(0, "a", "f", ""),
        ToolCallDelta(0, arguments='{"x":'),
        ToolCallDelta(0, arguments="1}"),
        Finish("tool_calls", None, "tool_calls"),
    ]


# --- Workers AI ---


@pytest.mark.behaviour("PV-26")
def test_tools_of_workers_ai() -> None:
    call = chat(messages=PROMPT, tools=[WEATHER], tool_choice=NamedFunction("weather"))
    body = json.loads(requested("workers-ai", call).body)
    assert [each["function"]["name"] for each in body["tools"]] == ["weather"]
    decoder = dialect("workers-ai", "m").decoder()
    answer = {"result": {"response": None, "tool_calls": [{"name": "weather", "arguments": {"a": 1}}]}, "success": True}
    found = [*decoder.feed(json.dumps(answer).encode()), *decoder.end()]
    assert isinstance(found[0], ToolCallDelta)
    assert (found[0].index, found[0].name, found[0].arguments) == (0, "weather", '{"a":1}')
    assert found[1:] == [Finish("tool_calls", None)]


# --- what they cannot do ---


@pytest.mark.parametrize(
    ("vendor", "model", "more"),
    [
        ("ai21", "j2-mid", {"tools": [WEATHER]}),
        ("reka-ai", "m", {"tools": [WEATHER]}),
        ("palm", "m", {"response_format": {"type": "json_object"}}),
        ("palm", "m", {"stop": ["!"]}),
        ("bytez", "m", {"tools": [WEATHER]}),
        ("reka-ai", "m", {"n": 2}),
        ("reka-ai", "m", {"logprobs": True}),
        ("workers-ai", "m", {"tools": [WEATHER], "tool_choice": "required"}),
        ("oracle", "cohere.command-r", {}),
        ("reka-ai", "m", {"messages": [ChatMessage(role="user", content=[ImagePart(ImageUrl("https://x"))])]}),
    ],
)
def test_what_cannot_be_said_is_refused(vendor: str, model: str, more: dict[str, Any]) -> None:
    with pytest.raises(ProviderError) as caught:
        requested(vendor, chat(model, **more))
    assert caught.value.kind in ("invalid", "model_not_found")


@pytest.mark.parametrize(
    ("vendor", "status", "body", "kind", "said"),
    [
        (
            "workers-ai",
            400,
            {"errors": [{"code": 5007, "message": "No such model"}], "success": False},
            "invalid",
            "No such",
        ),
        ("ai21", 401, {"detail": "Forbidden: Bad or missing API token."}, "auth", "Forbidden"),
        ("reka-ai", 422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, "invalid", "field required"),
        ("palm", 429, {"error": {"code": 429, "message": "Quota exceeded", "status": "X"}}, "rate_limit", "Quota"),
        ("oracle", 404, {"code": "404", "message": "Entity not found"}, "model_not_found", "Entity"),
        ("bytez", 500, {"error": "Rate limited"}, "server", "Rate limited"),
    ],
)
@pytest.mark.behaviour("GERR-02")
def test_errors_in_their_words(vendor: str, status: int, body: Any, kind: str, said: str) -> None:
    model = "j2-mid" if vendor == "ai21" else "m"
    error = dialect(vendor, model).error(status, {}, json.dumps(body).encode())
    assert (error.kind, error.status) == (kind, status)
    assert said in error.message


@pytest.mark.parametrize("vendor", ["ai21", "palm", "reka-ai", "bytez", "oracle", "workers-ai"])
@pytest.mark.parametrize("body", [b"{}", b'{"a":', b'{"result":7}', b'{"outputs":[]}', b'{"output":3}', b'{"text":{}}'])
def test_nonsense_is_an_error_and_nothing_else(vendor: str, body: bytes) -> None:
    decoder = dialect(vendor, "j2-mid" if vendor == "ai21" else "m").decoder()
    found = list[Chunk]()
    try:
        found += decoder.feed(body)
        found += decoder.end()
    except ProviderError:
        assert not any(isinstance(chunk, Finish) for chunk in found)
    else:
        assert isinstance(found[-1], Finish)
        assert body == b'{"text":{}}'
        assert vendor == "reka-ai"


def test_newer_models_of_ai21_speak_openais_dialect() -> None:
    call = requested("ai21", chat("jamba-large"))
    assert call.url == "http://h/chat/completions"
    assert json.loads(call.body)["model"] == "jamba-large"
    assert operation(target("ai21"), "chat", "jamba-large") is not None
    assert operation(target("ai21"), "chat", "j2-mid") is None
