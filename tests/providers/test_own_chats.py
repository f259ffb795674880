"""Chats and completions that one vendor alone speaks: documented bytes both ways, over a real connection."""

import json
from collections.abc import Iterable
from typing import Any

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
from tests.providers.asking import Ask
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


PLAIN: list[Any] = [
    pytest.param(
        "ai21",
        "chat",
        chat("j2-mid", stop=["!"]),
        "/j2-mid/chat",
        {
            "system": "Be brief.",
            "messages": [
                {"role": "user", "text": "Hi"},
                {"role": "assistant", "text": "Yes?"},
                {"role": "user", "text": "Grüße"},
            ],
            "temperature": 0.5,
            "topP": 0.9,
            "maxTokens": 7,
            "stopSequences": ["!"],
        },
        {"id": "i", "outputs": [{"text": "Ok.", "role": "assistant", "finishReason": {"reason": "length"}}]},
        Finish("length", None, "length"),
        id="ai21",
        marks=pytest.mark.behaviour("PV-11"),
    ),
    pytest.param(
        "ai21",
        "complete",
        chat("j2-mid", PROMPT),
        "/j2-mid/complete",
        {"prompt": "Once upon", "temperature": 0.5, "topP": 0.9, "maxTokens": 7},
        {"id": "i", "completions": [{"data": {"text": "Ok."}, "finishReason": {"reason": "endoftext"}}]},
        Finish("stop", None, "endoftext"),
        id="ai21 completion",
        marks=pytest.mark.behaviour("PV-11"),
    ),
    pytest.param(
        "palm",
        "chat",
        chat("models/chat-bison-001", temperature=2),
        "/models/chat-bison-001:generateMessage",
        {
            "prompt": {
                "context": "Be brief.",
                "messages": [
                    {"author": "user", "content": "Hi"},
                    {"author": "assistant", "content": "Yes?"},
                    {"author": "user", "content": "Grüße"},
                ],
            },
            "temperature": 1.0,
            "topP": 0.9,
        },
        {"candidates": [{"author": "1", "content": "Ok."}], "messages": []},
        Finish("stop", None, "stop"),
        id="palm",
        marks=pytest.mark.behaviour("PV-13"),
    ),
    pytest.param(
        "palm",
        "complete",
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
        Finish("stop", None, "stop"),
        id="palm completion",
        marks=pytest.mark.behaviour("PV-13"),
    ),
    pytest.param(
        "reka-ai",
        "chat",
        chat("reka-core", stop=["!"]),
        "/chat",
        {
            "model_name": "reka-core",
            "conversation_history": [
                {"type": "human", "text": "Be brief.\n\nHi"},
                {"type": "model", "text": "Yes?"},
                {"type": "human", "text": "Grüße"},
            ],
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
        Finish("length", Usage(11, 2), "length"),
        id="reka-ai",
        marks=pytest.mark.behaviour("PV-27"),
    ),
    pytest.param(
        "bytez",
        "chat",
        chat("org/model"),
        "/models/v2/org/model",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Grüße"},
            ],
            "stream": False,
            "params": {"max_new_tokens": 7, "temperature": 0.5, "top_p": 0.9},
        },
        {"error": None, "output": {"role": "assistant", "content": "Ok."}},
        Finish("stop", None, "stop"),
        id="bytez",
        marks=pytest.mark.behaviour("PV-58"),
    ),
    pytest.param(
        "triton",
        "complete",
        chat("ensemble", PROMPT, max_completion_tokens=..., stop=["!"]),
        "/generate",
        {"text_input": "Once upon", "max_tokens": 100, "temperature": 0.5, "top_p": 0.9, "stop_words": ["!"]},
        {"model_name": "ensemble", "model_version": "1", "text_output": "Ok."},
        Finish("stop", None, "stop"),
        id="triton",
        marks=pytest.mark.behaviour("PV-36"),
    ),
    pytest.param(
        "cohere",
        "complete",
        chat("command", PROMPT, top_p=1.0, stream=False),
        "/v1/generate",
        {"model": "command", "prompt": "Once upon", "stream": False, "max_tokens": 7, "temperature": 0.5, "p": 0.99},
        {
            "id": "i",
            "generations": [{"id": "g", "text": "Ok.", "finish_reason": "MAX_TOKENS"}],
            "prompt": "Once upon",
            "meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 3, "output_tokens": 7}},
        },
        Finish("length", Usage(3, 7), "MAX_TOKENS"),
        id="cohere completion",
        marks=pytest.mark.behaviour("PV-10", "TR-24"),
    ),
    pytest.param(
        "workers-ai",
        "chat",
        chat("@cf/meta/llama-3.1-8b-instruct", stream=False),
        "/@cf/meta/llama-3.1-8b-instruct",
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Grüße"},
            ],
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "stream": False,
        },
        {
            "result": {"response": "Ok.", "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}},
            "success": True,
            "errors": [],
            "messages": [],
        },
        Finish("stop", Usage(9, 2)),
        id="workers-ai",
        marks=pytest.mark.behaviour("PV-26"),
    ),
    pytest.param(
        "workers-ai",
        "complete",
        chat("@cf/m", PROMPT),
        "/@cf/m",
        {"prompt": "Once upon", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stream": True},
        {"result": {"response": "Ok."}, "success": True, "errors": [], "messages": []},
        Finish("stop", None),
        id="workers-ai completion",
        marks=pytest.mark.behaviour("PV-26"),
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


# --- Vertex AI ---

PLACE = "projects/p/locations/us-east5/"
REGIONAL = "https://us-east5-aiplatform.googleapis.com/"


def vertex(call: Chat) -> tuple[str, dict[str, Any], dict[str, str]]:
    row = CATALOGUE["vertex-ai"]
    to = Target(vendor=row, base_url=str(row.base_url), api_key="ya29", project="p", region="us-east5")
    found = dialect_of(to, call.model)
    assert found is not None
    made = found.request(call, to)
    return made.url, json.loads(made.body), made.headers


@pytest.mark.behaviour("TR-21", "PV-07")
@pytest.mark.parametrize(
    ("model", "stream", "path", "has"),
    [
        (
            "anthropic.claude-sonnet-4@20250514",
            True,
            f"v1/{PLACE}publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict",
            {"anthropic_version": "vertex-2023-10-16", "stream": True},
        ),
        (
            "anthropic.claude-3-haiku",
            False,
            f"v1/{PLACE}publishers/anthropic/models/claude-3-haiku:rawPredict",
            {"anthropic_version": "vertex-2023-10-16"},
        ),
        (
            "mistralai.mistral-small-2503",
            True,
            f"v1/{PLACE}publishers/mistralai/models/mistral-small-2503:streamRawPredict",
            {"model": "mistral-small-2503"},
        ),
        (
            "meta.llama-3.3-70b-instruct-maas",
            True,
            f"v1beta1/{PLACE}endpoints/openapi/chat/completions",
            {"model": "meta/llama-3.3-70b-instruct-maas"},
        ),
        ("endpoints.1234567890", True, f"v1beta1/{PLACE}endpoints/1234567890/chat/completions", {}),
        (
            "gemini-2.5-flash",
            True,
            f"v1beta1/{PLACE}publishers/google/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            {},
        ),
    ],
)
def test_publishers_on_vertex(model: str, stream: bool, path: str, has: dict[str, Any]) -> None:
    url, body, headers = vertex(chat(model, PROMPT, stream=stream))
    assert url == REGIONAL + path
    assert has.items() <= body.items()
    if "model" not in has:
        assert "model" not in body
    assert headers["Authorization"] == "Bearer ya29"
    assert not {"x-api-key", "anthropic-version"} & {name.lower() for name in headers}


@pytest.mark.behaviour("PV-07")
def test_anthropics_messages_on_vertex() -> None:
    row = CATALOGUE["vertex-ai"]
    to = Target(vendor=row, base_url=str(row.base_url), api_key="ya29", project="p")
    fields = {"model": "anthropic.claude-x", "max_tokens": 3, "messages": [], "stream": True}
    doing = operation(to, "messages", "anthropic.claude-x")
    assert doing is not None
    assert doing.passes
    call = doing.request(Ask(path="/messages", fields=fields), fields, None, to)
    where = "https://aiplatform.googleapis.com/v1/projects/p/locations/global/publishers/anthropic/models/"
    assert call.url == where + "claude-x:streamRawPredict"
    assert json.loads(call.body) == {
        "anthropic_version": "vertex-2023-10-16",
        "max_tokens": 3,
        "messages": [],
        "stream": True,
    }
    count = doing.request(Ask(path="/messages/count_tokens", fields=fields), fields, None, to)
    assert count.url == where + "count-tokens:rawPredict"
    assert operation(to, "count_tokens", "anthropic.claude-x") is doing
    assert operation(to, "messages", "gemini-2.5-flash") is None  # a front plays it


@pytest.mark.parametrize("model", ["anthropic.../x", "meta.", "endpoints.a/b", "a b", "google.", "x:y"])
def test_no_models_name_on_vertex(model: str) -> None:
    with pytest.raises(ProviderError) as caught:
        vertex(chat(model, PROMPT))
    assert caught.value.kind == "model_not_found"


def test_vertex_needs_a_project() -> None:
    row = CATALOGUE["vertex-ai"]
    to = Target(vendor=row, base_url=str(row.base_url), api_key="ya29")
    found = dialect_of(to, "meta.llama")
    assert found is not None
    with pytest.raises(ProviderError) as caught:
        found.request(chat("meta.llama"), to)
    assert "vertex_project_id" in caught.value.message
