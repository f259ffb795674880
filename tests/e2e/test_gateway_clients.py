"""The official SDKs, unchanged, through the gateway: what they send arrives, and what they get they understand."""

import base64
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.providers.conformance.suite import Answer, wires
from tests.support.node import play
from tests.support.standin import StandIn, chat_answer, chat_events
from tests.support.way import OWN, Way

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import says of its own dependencies is not ours
    import portkey_ai

ANTHROPIC = next(wire for wire in wires() if wire.vendor == "anthropic")
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Berlin"}'}}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
ASK: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def _openai(way: Way) -> Any:
    headers = {name: value for name, value in way.sent().items() if name != "Authorization"}
    return OpenAI(base_url=f"{way.url}/v1", api_key=OWN, default_headers=headers, max_retries=0)


def _portkey(way: Way) -> Any:
    return portkey_ai.Portkey(
        base_url=f"{way.url}/v1",
        api_key=way.key,
        provider="openai",
        custom_host=f"{way.upstream.url}/v1",
        Authorization=f"Bearer {OWN}",
    )


def _closed(client: Any) -> None:
    client.close()
    if not isinstance(client, OpenAI):
        client.openai_client.close()


@pytest.fixture(params=[_openai, _portkey], ids=["openai", "portkey"])
def sdk(request: pytest.FixtureRequest, way: Way) -> Any:
    connect: Callable[[Way], Any] = request.param
    client = connect(way)
    yield client
    _closed(client)


def _asked(upstream: StandIn) -> Any:
    assert upstream.last.headers["authorization"] == f"Bearer {OWN}"
    return json.loads(upstream.last.body)


# --- chat -------------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("AUTH-02", "RT-02", "RSP-01", "RSP-02", "RSP-03", "RSP-04", "RSP-05")
def test_a_chat(sdk: Any, upstream: StandIn) -> None:
    upstream.say(chat_answer("Hi."))
    found = sdk.chat.completions.create(**ASK)
    assert found.choices[0].message.content == "Hi."
    assert found.usage.total_tokens == 11
    assert _asked(upstream)["messages"] == ASK["messages"]
    told = dict(found.get_headers().items()) if hasattr(found, "get_headers") else None
    if told is not None:
        assert told["provider"] == "openai"
        assert told["last-used-option-index"] == "config"
        assert told["retry-attempt-count"] == "0"
        assert told["cache-status"] == "DISABLED"
        assert told["trace-id"]


def test_a_streamed_chat(sdk: Any, upstream: StandIn) -> None:
    upstream.stream(*chat_events("Hello ", "world"))
    with sdk.chat.completions.create(**ASK, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_chat_with_tools(sdk: Any, upstream: StandIn) -> None:
    answer = chat_answer()
    answer["choices"][0] |= {
        "message": {"role": "assistant", "content": None, "tool_calls": [CALL]},
        "finish_reason": "tool_calls",
    }
    upstream.say(answer)
    found = sdk.chat.completions.create(**ASK, tools=[TOOL], tool_choice="required")
    assert found.choices[0].message.tool_calls[0].function.arguments == '{"city":"Berlin"}'
    assert (_asked(upstream)["tools"], _asked(upstream)["tool_choice"]) == ([TOOL], "required")


class City(BaseModel):
    name: str


def test_a_chat_with_a_schema(way: Way, upstream: StandIn) -> None:
    upstream.say(chat_answer('{"name":"Berlin"}'))
    with _openai(way) as client:
        found = client.chat.completions.parse(**ASK, response_format=City)
    assert found.choices[0].message.parsed == City(name="Berlin")
    assert _asked(upstream)["response_format"]["json_schema"]["schema"]["required"] == ["name"]


def test_a_chat_about_an_image(sdk: Any, upstream: StandIn) -> None:
    upstream.say(chat_answer())
    url = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]
    sdk.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": content}])
    assert _asked(upstream)["messages"][0]["content"] == content


# --- the other endpoints ----------------------------------------------------------------------------------------------


def test_completions(sdk: Any, upstream: StandIn) -> None:
    choice = {"text": "Hi.", "index": 0, "logprobs": None, "finish_reason": "stop"}
    upstream.say({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})
    assert sdk.completions.create(model="m", prompt="Hello").choices[0].text == "Hi."
    assert _asked(upstream)["prompt"] == "Hello"


def test_embeddings(sdk: Any, upstream: StandIn) -> None:
    vector = base64.b64encode(b"\x00\x00\x80\x3f\x00\x00\x00\x40").decode()
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    upstream.say({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}})
    found = sdk.embeddings.create(model="m", input="Hello", encoding_format="base64").data[0].embedding
    assert found in ([1.0, 2.0], vector)
    assert _asked(upstream)["input"] == "Hello"


def test_moderations(sdk: Any, upstream: StandIn) -> None:
    upstream.at("POST /v1/moderations ", {"id": "m", "model": "m", "results": []})
    assert sdk.moderations.create(input="x", model="m").results == []


def test_images(sdk: Any, upstream: StandIn) -> None:
    answer = {"created": 1, "data": [{"b64_json": base64.b64encode(PIXEL).decode()}]}
    upstream.at("POST /v1/images/generations ", answer)
    upstream.at("POST /v1/images/edits ", answer)
    made = sdk.images.generate(model="gpt-image-1", prompt="A dot")
    assert base64.b64decode(made.data[0].b64_json) == PIXEL
    sdk.images.edit(model="gpt-image-1", image=("a.png", PIXEL, "image/png"), prompt="Another")
    edit = upstream.asked[-1]
    assert edit.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert PIXEL in edit.body


def test_audio(sdk: Any, upstream: StandIn, tmp_path: Path) -> None:
    sound = bytes(range(256)) * 300
    upstream.at("POST /v1/audio/speech ", sound, "200 OK", ("Content-Type", "audio/mpeg"))
    upstream.at("POST /v1/audio/transcriptions ", {"text": "Hello"})
    upstream.at("POST /v1/audio/translations ", {"text": "Hello"})
    assert sdk.audio.speech.create(model="tts-1", voice="alloy", input="Hello").content == sound
    (tmp_path / "a.mp3").write_bytes(sound)
    for kind in (sdk.audio.transcriptions, sdk.audio.translations):
        with (tmp_path / "a.mp3").open("rb") as file:
            assert kind.create(model="whisper-1", file=file).text == "Hello"
    assert sound in upstream.asked[-1].body


def test_models(sdk: Any, upstream: StandIn) -> None:
    model = {"id": "ft:a/b", "object": "model", "created": 1, "owned_by": "x"}
    upstream.at("GET /v1/models ", {"object": "list", "data": [model]})
    assert [model.id for model in sdk.models.list().data] == ["ft:a/b"]


FILE = {
    "id": "file-1",
    "object": "file",
    "bytes": 3,
    "created_at": 1,
    "filename": "a",
    "purpose": "batch",
    "status": "processed",
}
BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "input_file_id": "file-1",
    "completion_window": "24h",
    "status": "validating",
    "created_at": 1,
}
JOB = {
    "id": "ftjob-1",
    "object": "fine_tuning.job",
    "created_at": 1,
    "model": "m",
    "organization_id": "o",
    "result_files": [],
    "seed": 1,
    "status": "queued",
    "training_file": "file-1",
    "hyperparameters": {},
}


@pytest.mark.behaviour("PRX-15", "RT-02")
def test_files_batches_and_fine_tuning(sdk: Any, upstream: StandIn) -> None:
    page = {"object": "list", "has_more": False}
    for path, answer in {
        "POST /v1/files ": FILE,
        "GET /v1/files ": {**page, "data": [FILE]},
        "GET /v1/files/file-1 ": FILE,
        "GET /v1/files/file-1/content ": b'{"a":1}\n',
        "DELETE /v1/files/file-1 ": {"id": "file-1", "object": "file", "deleted": True},
        "POST /v1/batches ": BATCH,
        "GET /v1/batches/batch_1 ": BATCH,
        "POST /v1/batches/batch_1/cancel ": {**BATCH, "status": "cancelling"},
        "POST /v1/fine_tuning/jobs ": JOB,
        "GET /v1/fine_tuning/jobs/ftjob-1 ": JOB,
        "POST /v1/fine_tuning/jobs/ftjob-1/cancel ": {**JOB, "status": "cancelled"},
    }.items():
        upstream.at(path, answer)
    assert sdk.files.create(file=("a.jsonl", b'{"odd": 1}\n'), purpose="batch").id == "file-1"
    assert b'{"odd": 1}\n' in upstream.last.body
    assert [file.id for file in sdk.files.list().data] == ["file-1"]
    assert sdk.files.retrieve("file-1").filename == "a"
    assert sdk.files.content("file-1").content == b'{"a":1}\n'
    assert sdk.files.delete("file-1").deleted is True
    window: Any = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert sdk.batches.create(**window).id == "batch_1"
    assert sdk.batches.retrieve("batch_1").status == "validating"
    assert sdk.batches.cancel("batch_1").status == "cancelling"
    assert sdk.fine_tuning.jobs.create(model="m", training_file="file-1").id == "ftjob-1"
    assert sdk.fine_tuning.jobs.retrieve("ftjob-1").status == "queued"
    assert sdk.fine_tuning.jobs.cancel("ftjob-1").status == "cancelled"


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "m",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "output": [
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hi.", "annotations": []}],
        }
    ],
}


def test_responses(sdk: Any, upstream: StandIn) -> None:
    upstream.at("POST /v1/responses ", RESPONSE)
    upstream.at("GET /v1/responses/resp_1 ", RESPONSE)
    assert sdk.responses.create(model="m", input="Hello").output_text == "Hi."
    assert sdk.responses.retrieve("resp_1").id == "resp_1"


def test_streamed_responses(way: Way, upstream: StandIn) -> None:
    delta = {"type": "response.output_text.delta", "delta": "Hi", "item_id": "i", "output_index": 0, "content_index": 0}
    events = [
        ("response.output_text.delta", delta),
        ("response.completed", {"type": "response.completed", "response": RESPONSE}),
    ]
    upstream.stream(*(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in events))
    with _openai(way) as client, client.responses.create(model="m", input="x", stream=True) as stream:
        assert [event.type for event in stream] == [name for name, _ in events]


def test_any_path(way: Way, upstream: StandIn) -> None:
    upstream.at("POST /v1/vector_stores/vs_1/search?a=1 ", b'{"odd" : [1]}')
    with _openai(way) as client:
        found = client.post(
            "/vector_stores/vs_1/search", body={"query": "x"}, options={"params": {"a": "1"}}, cast_to=object
        )
    assert found == {"odd": [1]}


@pytest.mark.behaviour("RT-05", "PRX-01")
def test_portkeys_own_post(way: Way, upstream: StandIn) -> None:
    upstream.at("POST /v1/odd/path ", b'{"odd" : 1}')
    client = _portkey(way)
    found = client.post("/odd/path", a=1)
    _closed(client)
    assert json.loads(upstream.last.body) == {"a": 1}
    assert found["odd"] == 1 if isinstance(found, dict) else found.model_dump()["odd"] == 1


def test_rerank(way: Way) -> None:
    there = way.at("cohere")
    way.upstream.say({"id": "r", "results": [{"index": 1, "relevance_score": 0.9}], "meta": {}})
    found = there.post("/rerank", {"model": "rerank-v3.5", "query": "q", "documents": ["a", "b"]})
    assert (found.status, found.json["results"][0]["index"]) == (200, 1)


# --- errors, as the SDKs show them ------------------------------------------------------------------------------------


@pytest.mark.behaviour("VAL-21", "GERR-01", "VAL-03")
@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500])
def test_errors_of_the_vendor(way: Way, upstream: StandIn, status: int) -> None:
    upstream.say({"error": {"message": "No.", "type": "t", "param": "p", "code": "c"}}, f"{status} X")
    with _openai(way) as client, pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**ASK)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, "c", "p")
    assert "openai error: No." in caught.value.message


@pytest.mark.behaviour("VAL-21")
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"provider": "nobody"}, "unknown_provider"),
        ({"config": "{"}, "invalid_config"),
        ({"odd": "1"}, "unsupported_header"),
    ],
)
def test_errors_of_the_gateway(way: Way, headers: dict[str, str], code: str) -> None:
    with _openai(way.named(**headers)) as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASK)
    assert caught.value.code == code
    assert caught.value.message


# --- Anthropic's SDK --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["anthropic", "openai"])
def claude(request: pytest.FixtureRequest, way: Way) -> Iterator[tuple[str, anthropic.Anthropic]]:
    """Before an endpoint that speaks Anthropic's format, and before one that speaks OpenAI's."""
    there = way.at(request.param, "/v1")
    headers = {name: value for name, value in there.sent().items() if name != "Authorization"}
    with anthropic.Anthropic(base_url=way.url, api_key=OWN, default_headers=headers, max_retries=0) as client:
        yield request.param, client


MESSAGE: Any = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}


def test_a_message(claude: tuple[str, anthropic.Anthropic], upstream: StandIn) -> None:
    vendor, client = claude
    upstream.say(ANTHROPIC.whole(Answer(text=["Hi."])) if vendor == "anthropic" else chat_answer("Hi."))
    found = client.messages.create(**MESSAGE, system="Be brief.")
    (block,) = found.content
    assert (block.type, getattr(block, "text", None), found.stop_reason) == ("text", "Hi.", "end_turn")
    asked = json.loads(upstream.last.body)
    if vendor == "anthropic":
        assert upstream.last.headers["x-api-key"] == OWN
        assert asked == {**MESSAGE, "system": "Be brief."}
    else:
        assert upstream.last.headers["authorization"] == f"Bearer {OWN}"
        assert [message["role"] for message in asked["messages"]] == ["system", "user"]


def test_a_streamed_message(claude: tuple[str, anthropic.Anthropic], upstream: StandIn) -> None:
    vendor, client = claude
    upstream.stream(
        *(
            [ANTHROPIC.stream(Answer(text=["Hello ", "world"]))]
            if vendor == "anthropic"
            else chat_events("Hello ", "world")
        )
    )
    with client.messages.stream(**MESSAGE) as stream:
        assert "".join(stream.text_stream) == "Hello world"
        assert stream.get_final_message().stop_reason == "end_turn"


def test_a_message_with_tools(claude: tuple[str, anthropic.Anthropic], upstream: StandIn) -> None:
    vendor, client = claude
    answer = chat_answer()
    answer["choices"][0] |= {
        "message": {"role": "assistant", "content": None, "tool_calls": [CALL]},
        "finish_reason": "tool_calls",
    }
    whole = Answer(calls=[("get_weather", '{"city":"Berlin"}')], finish="tool_calls")
    upstream.say(ANTHROPIC.whole(whole) if vendor == "anthropic" else answer)
    found = client.messages.create(**MESSAGE, tools=[{"name": "get_weather", "input_schema": {"type": "object"}}])
    (block,) = found.content
    assert block.type == "tool_use"
    assert (block.name, block.input, found.stop_reason) == ("get_weather", {"city": "Berlin"}, "tool_use")


def test_counting_tokens(way: Way, upstream: StandIn) -> None:
    headers = {name: value for name, value in way.at("anthropic", "/v1").sent().items() if name != "Authorization"}
    upstream.at("POST /v1/messages/count_tokens ", {"input_tokens": 7})
    with anthropic.Anthropic(base_url=way.url, api_key=OWN, default_headers=headers, max_retries=0) as client:
        assert client.messages.count_tokens(model="m", messages=MESSAGE["messages"]).input_tokens == 7


def test_errors_of_messages(claude: tuple[str, anthropic.Anthropic], upstream: StandIn) -> None:
    vendor, client = claude
    status, headers, body = ANTHROPIC.error("rate_limit")
    said: Any = body if vendor == "anthropic" else {"error": {"message": "Slow down.", "type": "tokens"}}
    upstream.say(said, f"{status} X", *headers.items())
    with pytest.raises(anthropic.RateLimitError) as caught:
        client.messages.create(**MESSAGE)
    assert f"{vendor} error: " in caught.value.message


@pytest.mark.behaviour("VAL-21")
def test_refusals_of_messages(way: Way) -> None:
    headers = {name: value for name, value in way.named(provider="nobody").sent().items() if name != "Authorization"}
    with (
        anthropic.Anthropic(base_url=way.url, api_key=OWN, default_headers=headers, max_retries=0) as client,
        pytest.raises(anthropic.BadRequestError) as caught,
    ):
        client.messages.create(**MESSAGE)
    assert "Invalid provider passed" in caught.value.message


# --- Node -------------------------------------------------------------------------------------------------------------


def test_the_node_clients(way: Way, upstream: StandIn) -> None:
    """OpenAI's and Portkey's: tests/node/gateway.mjs plays and looks at what it got."""
    upstream.at("POST /v1/chat/completions ", chat_answer("Hi."))
    upstream.at(
        "POST /v1/embeddings ",
        {"object": "list", "model": "m", "data": [{"object": "embedding", "index": 0, "embedding": "AACAPwAAAEA="}]},
    )
    upstream.at("GET /v1/models ", {"object": "list", "data": [{"id": "m", "object": "model"}]})
    upstream.at("POST /v1/audio/speech ", b"\x00\xff\x01", "200 OK", ("Content-Type", "audio/mpeg"))
    upstream.at("POST /v1/audio/transcriptions ", {"text": "Hello"})
    upstream.at("POST /v1/completions ", {"error": {"message": "No.", "type": "t", "param": "p", "code": "c"}}, "400 X")
    upstream.at(
        "POST /v1/responses ",
        b"".join([b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n']),
        "200 OK",
        ("Content-Type", "text/event-stream"),
    )
    environment = {
        "LOOMGATE_URL": way.url,
        "LOOMGATE_KEY": way.key,
        "UPSTREAM": f"{upstream.url}/v1",
        "PROVIDER_KEY": OWN,
    }
    seen = play("gateway.mjs", environment)
    assert [result["client"] for result in seen] == ["openai", "portkey"]
    assert {request.headers["authorization"] for request in upstream.asked} == {f"Bearer {OWN}"}
