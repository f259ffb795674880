"""OpenAI's own client on the gateway, unchanged, over stand-ins of OpenAI, Anthropic and Google."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from loomgate.wire.chat import Usage
from tests.providers.conformance.suite import Answer, Wire
from tests.providers.conformance.wire_anthropic import AnthropicWire
from tests.providers.conformance.wire_gemini import GeminiWire
from tests.providers.conformance.wire_openai import OpenAIWire
from tests.support.peer import Request
from tests.support.standin import StandIn, chat_answer, chat_events, response_answer
from tests.support.way import OWN, Way

HI: Any = [{"role": "user", "content": "Hi"}]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
OPENAI, ANTHROPIC, GEMINI = OpenAIWire(), AnthropicWire("anthropic", "claude-sonnet-4-6"), GeminiWire()
BASES = {"openai": "/v1", "anthropic": "/v1", "google": "/v1beta"}
VENDORS = pytest.mark.parametrize("vendor", [OPENAI, ANTHROPIC, GEMINI], ids=lambda vendor: vendor.vendor)


class City(BaseModel):
    """What the model is to answer with."""

    name: str
    size: int


def connect(way: Way, retries: int = 0) -> OpenAI:
    """The client as its users make it: the vendor's key is its own, the way is in headers."""
    headers = {name: value for name, value in way.sent().items() if name != "Authorization"}
    return OpenAI(base_url=f"{way.url}/v1", api_key=OWN, default_headers=headers, max_retries=retries)


@pytest.fixture
def client(way: Way) -> Iterator[OpenAI]:
    """Through the gateway to `upstream` as OpenAI."""
    with connect(way) as made:
        yield made


def at(way: Way, vendor: Any) -> OpenAI:
    """Through the gateway to `upstream` as ``vendor``."""
    return connect(way.at(vendor.vendor, BASES[vendor.vendor]))


def body(request: Request) -> Any:
    """What was asked, as JSON."""
    return json.loads(request.body)


def line(request: Request) -> str:
    """Method and path."""
    return request.line.removesuffix(" HTTP/1.1")


# --- chat, whatever the vendor ---------------------------------------------------------------------------------------


@VENDORS
@pytest.mark.behaviour("RT-02", "HOST-05", "AUTH-05")
def test_chat(way: Way, vendor: Wire) -> None:
    said = Answer(text=["Good ", "day: 世界."], usage=Usage(9, 4))
    way.upstream.say(vendor.whole(said))
    with at(way, vendor) as client:
        found = client.chat.completions.create(model=vendor.model, messages=HI, max_completion_tokens=64)
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == ("Good day: 世界.", "stop")
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (9, 4, 13)
    assert OWN in way.upstream.last.head.decode()
    assert way.key not in way.upstream.last.head.decode()


@VENDORS
@pytest.mark.behaviour("STM-01")
def test_chat_as_a_stream(way: Way, vendor: Wire) -> None:
    said = Answer(text=["One ", "two ", "three."], usage=Usage(9, 4))
    way.upstream.stream(vendor.stream(said), kind=vendor.content_type)
    with (
        at(way, vendor) as client,
        client.chat.completions.stream(
            model=vendor.model, messages=HI, max_completion_tokens=64, stream_options={"include_usage": True}
        ) as stream,
    ):
        assert "".join(event.delta for event in stream if event.type == "content.delta") == "One two three."
        found = stream.get_final_completion()
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (9, 4)


TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@VENDORS
@pytest.mark.parametrize("streamed", [False, True])
def test_tools_and_their_outputs(way: Way, vendor: Wire, streamed: bool) -> None:
    """A call, and the conversation that follows from it."""
    said = Answer(calls=[("weather", '{"city":"Oslo"}')], finish="tool_calls", usage=Usage(20, 8))
    with at(way, vendor) as client:
        if streamed:
            way.upstream.stream(vendor.stream(said), kind=vendor.content_type)
            with client.chat.completions.stream(
                model=vendor.model, messages=HI, tools=[TOOL], max_completion_tokens=64
            ) as stream:
                found: Any = stream.get_final_completion()
        else:
            way.upstream.say(vendor.whole(said))
            found = client.chat.completions.create(
                model=vendor.model, messages=HI, tools=[TOOL], max_completion_tokens=64
            )
        (choice,) = found.choices
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
        way.upstream.forget()
        way.upstream.say(vendor.whole(Answer(text=["3 degrees."], usage=Usage(30, 4))))
        told = [*HI, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
        found = client.chat.completions.create(
            model=vendor.model, messages=told, tools=[TOOL], max_completion_tokens=64
        )
    assert found.choices[0].message.content == "3 degrees."
    assert b"Oslo" in way.upstream.last.body


@pytest.mark.parametrize("vendor", [ANTHROPIC, GEMINI], ids=lambda vendor: vendor.vendor)
def test_functions_as_they_were_before_tools(way: Way, vendor: Wire) -> None:
    """The call, and the conversation that follows from it, in the older form."""
    said = Answer(calls=[("weather", '{"city":"Oslo"}')], finish="tool_calls", usage=Usage(20, 8))
    asked: dict[str, Any] = {"model": vendor.model, "functions": [TOOL["function"]], "max_completion_tokens": 64}
    with at(way, vendor) as client:
        way.upstream.say(vendor.whole(said))
        found: Any = client.chat.completions.create(messages=HI, **asked)
        (choice,) = found.choices
        call = choice.message.function_call
        assert (choice.finish_reason, call.name) == ("function_call", "weather")
        assert json.loads(call.arguments) == {"city": "Oslo"}
        way.upstream.forget()
        way.upstream.say(vendor.whole(Answer(text=["3 degrees."], usage=Usage(30, 4))))
        told = [*HI, choice.message, {"role": "function", "name": "weather", "content": "3"}]
        found = client.chat.completions.create(messages=told, **asked)
    assert found.choices[0].message.content == "3 degrees."
    assert b"Oslo" in way.upstream.last.body


@VENDORS
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_by_a_schema(way: Way, vendor: Wire, streamed: bool) -> None:
    said = Answer(text=['{"name":"Oslo",', '"size":7}'], usage=Usage(9, 4))
    asked: dict[str, Any] = {"messages": HI, "response_format": City, "max_completion_tokens": 64}
    with at(way, vendor) as client:
        if streamed:
            way.upstream.stream(vendor.stream(said), kind=vendor.content_type)
            with client.chat.completions.stream(model=vendor.model, **asked) as stream:
                found: Any = stream.get_final_completion()
        else:
            way.upstream.say(vendor.whole(said))
            found = client.chat.completions.parse(model=vendor.model, **asked)
    assert found.choices[0].message.parsed == City(name="Oslo", size=7)
    assert b'"size"' in way.upstream.last.body


@VENDORS
def test_an_image_in_a_message(way: Way, vendor: Wire) -> None:
    way.upstream.say(vendor.whole(Answer(text=["A pixel."], usage=Usage(9, 4))))
    data = base64.b64encode(PIXEL).decode()
    messages: Any = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            ],
        }
    ]
    with at(way, vendor) as client:
        found = client.chat.completions.create(model=vendor.model, messages=messages, max_completion_tokens=64)
    assert found.choices[0].message.content == "A pixel."
    assert data.encode() in way.upstream.last.body


ERRORS = {
    "invalid": openai.BadRequestError,
    "auth": openai.AuthenticationError,
    "rate_limit": openai.RateLimitError,
    "server": openai.InternalServerError,
    "overloaded": openai.InternalServerError,
}


@VENDORS
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.behaviour("GERR-01", "GERR-02", "RSP-08")
def test_errors_of_a_vendor(way: Way, vendor: Wire, kind: str, streamed: bool) -> None:
    status, headers, said = vendor.error(kind)
    way.upstream.say(said, f"{status} Status", *headers.items())
    # Google tells a wrong key as a wrong request.
    expected = openai.BadRequestError if (vendor, kind) == (GEMINI, "auth") else ERRORS[kind]
    with at(way, vendor) as client, pytest.raises(expected) as raised:
        client.chat.completions.create(model=vendor.model, messages=HI, max_completion_tokens=64, stream=streamed)
    error: Any = raised.value
    assert error.status_code == status
    told = json.loads(said)["error"]
    assert told["message"] in error.body["message"]
    assert error.body["message"].startswith(f"{vendor.vendor} error: ")
    assert {"message", "type", "param", "code"} <= error.body.keys()
    assert error.response.headers["x-portkey-provider"] == vendor.vendor
    assert error.response.headers["x-request-id"]


@VENDORS
def test_a_stream_that_fails_on_its_way(way: Way, vendor: Wire) -> None:
    """The client raises; it does not take half an answer for a whole one."""
    broken = vendor.midstream_error()
    assert broken is not None
    way.upstream.stream(broken, kind=vendor.content_type)
    with at(way, vendor) as client:
        stream = client.chat.completions.create(model=vendor.model, messages=HI, max_completion_tokens=64, stream=True)
        with pytest.raises(openai.APIError) as raised:
            list(stream)
    assert raised.value.message


# --- the gateway's own words -----------------------------------------------------------------------------------------


@pytest.mark.behaviour("VAL-21", "VAL-03", "VAL-04", "VAL-08")
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"provider": "nobody"}, "Invalid provider passed"),
        ({"custom_host": "http://10.0.0.1/v1"}, "Invalid custom host"),
        ({"odd": "1"}, "x-portkey-odd"),
        ({"config": "{nonsense", "provider": ""}, "Invalid config passed. You need to pass a valid json"),
    ],
)
def test_errors_of_the_gateway(way: Way, headers: dict[str, str], message: str) -> None:
    with connect(way.named(**headers)) as client, pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="gpt-4o", messages=HI)
    error: Any = raised.value
    assert message in error.body["message"]
    assert error.type == "invalid_request_error"
    assert not way.upstream.asked


@pytest.mark.behaviour("AUTH-10")
def test_a_wrong_key_of_this_server(way: Way) -> None:
    with connect(way.named(api_key="lg-nothing")) as client, pytest.raises(openai.AuthenticationError) as raised:
        client.chat.completions.create(model="gpt-4o", messages=HI)
    assert raised.value.code == "invalid_api_key"


@pytest.mark.behaviour("RSP-01", "RSP-02", "RSP-03", "RSP-04", "RSP-05", "RSP-07", "RH-07")
@pytest.mark.parametrize("streamed", [False, True])
def test_the_headers_of_an_answer(way: Way, streamed: bool) -> None:
    if streamed:
        way.upstream.stream(*chat_events("Hi."))
    else:
        way.upstream.say(chat_answer(), "200 OK", ("openai-processing-ms", "17"))
    with connect(way.named(trace_id="trace-7")) as client:
        raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HI, stream=streamed)
        answer: Any = raw.parse()
        if streamed:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == "Hi."
        else:
            assert answer.choices[0].message.content == "Hi."
            assert answer._request_id == raw.headers["x-request-id"]
            assert raw.headers["openai-processing-ms"] == "17"
    told = {name.removeprefix("x-portkey-"): value for name, value in raw.headers.items() if "portkey" in name}
    assert told == {
        "trace-id": "trace-7",
        "last-used-option-index": "config",
        "retry-attempt-count": "0",
        "cache-status": "DISABLED",
        "provider": "openai",
    }


def test_the_client_retries_by_its_own_rules(way: Way) -> None:
    status, _, said = OPENAI.error("overloaded")
    way.upstream.say(said, f"{status} Busy", ("retry-after-ms", "1"))
    way.upstream.say(chat_answer())
    with connect(way, retries=1) as client:
        assert client.chat.completions.create(model="gpt-4o", messages=HI).choices[0].message.content == "Hi."
    first, second = way.upstream.asked
    assert first.body == second.body


def test_the_client_does_not_retry_what_it_should_not(way: Way) -> None:
    status, _, said = OPENAI.error("overloaded")
    way.upstream.say(said, f"{status} Busy", ("x-should-retry", "false"))
    with connect(way, retries=1) as client, pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="gpt-4o", messages=HI)
    assert len(way.upstream.asked) == 1


@pytest.mark.behaviour("RTY-01")
def test_the_gateway_retries_so_that_the_client_need_not(way: Way) -> None:
    status, _, said = OPENAI.error("overloaded")
    way.upstream.say(said, f"{status} Busy")
    way.upstream.say(chat_answer())
    with connect(way.config({"retry": {"attempts": 1}})) as client:
        raw = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=HI)
    assert raw.headers["x-portkey-retry-attempt-count"] == "1"
    assert raw.parse().choices[0].message.content == "Hi."


# --- every other call ------------------------------------------------------------------------------------------------


def test_completions(client: OpenAI, upstream: StandIn) -> None:
    choice: dict[str, Any] = {"text": " world", "index": 0, "logprobs": None, "finish_reason": "length"}
    said = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct"}
    upstream.say({**said, "choices": [choice]})
    found = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello", max_tokens=1)
    assert found.choices[0].text == " world"
    assert body(upstream.last) == {"model": "gpt-3.5-turbo-instruct", "prompt": "Hello", "max_tokens": 1}
    upstream.stream(b"data: " + json.dumps({**said, "choices": [choice]}).encode() + b"\n\n", b"data: [DONE]\n\n")
    streamed = client.completions.create(model="gpt-3.5-turbo-instruct", prompt="Hello", stream=True)
    assert [chunk.choices[0].text for chunk in streamed] == [" world"]


def test_embeddings(client: OpenAI, upstream: StandIn) -> None:
    """The client asks for base64 and reads it: the vectors come as numbers."""
    row = {"object": "embedding", "index": 0, "embedding": base64.b64encode(b"\x00\x00\x80?\x00\x00\x00@").decode()}
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    upstream.say({"object": "list", "data": [row], "model": "text-embedding-3-small", "usage": usage})
    found = client.embeddings.create(model="text-embedding-3-small", input=["a"])
    assert found.data[0].embedding == [1.0, 2.0]
    assert body(upstream.last)["encoding_format"] == "base64"


def test_images(client: OpenAI, upstream: StandIn) -> None:
    data = base64.b64encode(PIXEL).decode()
    upstream.say({"created": 1, "data": [{"b64_json": data}]})
    found = client.images.generate(model="gpt-image-1", prompt="a dot", size="1024x1024")
    assert found.data is not None
    assert found.data[0].b64_json == data
    assert line(upstream.last) == "POST /v1/images/generations"
    for path, call in (
        ("edits", lambda: client.images.edit(image=("dot.png", PIXEL, "image/png"), prompt="red", model="dall-e-2")),
        ("variations", lambda: client.images.create_variation(image=("dot.png", PIXEL, "image/png"), n=2)),
    ):
        upstream.forget()
        upstream.say({"created": 1, "data": [{"url": "https://images.example/1"}]})
        answered = call().data
        assert answered is not None
        assert answered[0].url == "https://images.example/1"
        asked = upstream.last
        assert line(asked) == f"POST /v1/images/{path}"
        assert asked.headers["content-type"].startswith("multipart/form-data; boundary=")
        boundary = asked.headers["content-type"].partition("boundary=")[2].encode()
        assert asked.body.count(b"--" + boundary) == asked.body.count(b"Content-Disposition") + 1
        assert b'filename="dot.png"' in asked.body
        assert PIXEL in asked.body


def test_speech(client: OpenAI, upstream: StandIn) -> None:
    sound = bytes(range(256)) * 64
    for _ in range(2):
        upstream.stream(sound[:5000], sound[5000:], kind="audio/mpeg")
    asked: Any = {"model": "tts-1", "voice": "alloy", "input": "Hello", "response_format": "mp3"}
    whole = client.audio.speech.create(**asked)
    assert (whole.content, whole.response.headers["content-type"]) == (sound, "audio/mpeg")
    with client.audio.speech.with_streaming_response.create(**asked) as streamed:
        assert b"".join(streamed.iter_bytes()) == sound
    assert line(upstream.asked[-1]) == "POST /v1/audio/speech"


def test_transcriptions_and_translations(client: OpenAI, upstream: StandIn) -> None:
    sound = b"RIFF\x00\xff\r\n--not the boundary\r\n"
    upstream.say({"text": "Hello.", "usage": {"type": "duration", "seconds": 1}})
    assert client.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound)).text == "Hello."
    assert sound in upstream.last.body
    assert line(upstream.last) == "POST /v1/audio/transcriptions"
    upstream.say(b"1\n00:00:00,000 --> 00:00:01,000\nHello.\n", "200 OK", ("Content-Type", "text/plain"))
    found: Any = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", sound), response_format="srt")
    assert found == "1\n00:00:00,000 --> 00:00:01,000\nHello.\n"
    done = {"type": "transcript.text.done", "text": "Hello."}
    upstream.stream(b"data: " + json.dumps(done).encode() + b"\n\n")
    events = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=("a.wav", sound), stream=True)
    assert [event.type for event in events] == ["transcript.text.done"]
    upstream.forget()
    upstream.say({"text": "Good day."})
    assert client.audio.translations.create(model="whisper-1", file=("a.wav", sound)).text == "Good day."
    assert line(upstream.last) == "POST /v1/audio/translations"


def test_moderations_and_any_path(client: OpenAI, upstream: StandIn) -> None:
    upstream.at("POST /v1/moderations ", {"id": "m", "model": "m", "results": []})
    assert client.moderations.create(input="x", model="m").results == []
    upstream.at("POST /v1/vector_stores/vs_1/search?a=1 ", b'{"odd" : [1]}')
    options: Any = {"params": {"a": "1"}}
    found = client.post("/vector_stores/vs_1/search", body={"query": "x"}, options=options, cast_to=object)
    assert found == {"odd": [1]}


@pytest.mark.behaviour("RT-03")
def test_models(client: OpenAI, upstream: StandIn) -> None:
    row = {"id": "gpt-4o", "object": "model", "created": 1, "owned_by": "system"}
    upstream.at("GET /v1/models ", {"object": "list", "data": [row]})
    upstream.at("GET /v1/models/gpt-4o ", row)
    upstream.at("DELETE /v1/models/", {"id": "ft:gpt-4o:x", "object": "model", "deleted": True})
    assert [model.id for model in client.models.list()] == ["gpt-4o"]
    assert client.models.retrieve("gpt-4o").owned_by == "system"
    assert client.models.delete("ft:gpt-4o:x").deleted


def test_batches(client: OpenAI, upstream: StandIn) -> None:
    batch = {"id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "file-1"}
    batch |= {"completion_window": "24h", "status": "validating", "created_at": "1"}
    page = {"object": "list", "data": [batch], "first_id": "batch_1", "last_id": "batch_1", "has_more": False}
    upstream.at("POST /v1/batches ", batch)
    upstream.at("GET /v1/batches?limit=1 ", page)
    upstream.at("GET /v1/batches/batch_1 ", batch)
    upstream.at("POST /v1/batches/batch_1/cancel ", {**batch, "status": "cancelling"})
    made = client.batches.create(input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h")
    assert made.id == "batch_1"
    assert [one.id for one in client.batches.list(limit=1)] == ["batch_1"]
    assert client.batches.retrieve("batch_1").status == "validating"
    assert client.batches.cancel("batch_1").status == "cancelling"


def test_fine_tuning(client: OpenAI, upstream: StandIn) -> None:
    job = {"id": "ftjob-1", "object": "fine_tuning.job", "model": "gpt-4o-mini", "status": "queued"}
    event = {"object": "fine_tuning.job.event", "id": "ftevent-1", "created_at": 1, "level": "info", "message": "m"}
    jobs = "/v1/fine_tuning/jobs"
    upstream.at(f"POST {jobs} ", job)
    upstream.at(f"GET {jobs} ", {"object": "list", "data": [job], "has_more": False})
    upstream.at(f"GET {jobs}/ftjob-1 ", job)
    upstream.at(f"GET {jobs}/ftjob-1/events ", {"object": "list", "data": [event], "has_more": False})
    upstream.at(f"POST {jobs}/ftjob-1/cancel ", {**job, "status": "cancelled"})
    assert client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file="file-1").id == "ftjob-1"
    assert [one.id for one in client.fine_tuning.jobs.list()] == ["ftjob-1"]
    assert client.fine_tuning.jobs.retrieve("ftjob-1").status == "queued"
    assert [one.id for one in client.fine_tuning.jobs.list_events("ftjob-1")] == ["ftevent-1"]
    assert client.fine_tuning.jobs.cancel("ftjob-1").status == "cancelled"


def test_files_of_a_named_provider(client: OpenAI, upstream: StandIn) -> None:
    file = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a.jsonl", "purpose": "batch"}
    file |= {"status": "processed"}
    upstream.at("POST /v1/files ", file)
    upstream.at("GET /v1/files ", {"object": "list", "data": [file], "has_more": False})
    upstream.at("GET /v1/files/file-1 ", file)
    upstream.at("GET /v1/files/file-1/content ", b'{"a":\xff}', "200 OK", ("Content-Type", "application/octet-stream"))
    upstream.at("DELETE /v1/files/file-1 ", {"id": "file-1", "object": "file", "deleted": True})
    assert client.files.create(file=("a.jsonl", io.BytesIO(b"{}\n")), purpose="batch").id == "file-1"
    assert b'filename="a.jsonl"' in upstream.last.body
    assert [one.id for one in client.files.list()] == ["file-1"]
    assert client.files.retrieve("file-1").filename == "a.jsonl"
    assert client.files.content("file-1").content == b'{"a":\xff}'
    assert client.files.delete("file-1").deleted


def test_responses(client: OpenAI, upstream: StandIn) -> None:
    upstream.at("POST /v1/responses ", response_answer())
    upstream.at("GET /v1/responses/resp_1 ", response_answer())
    upstream.at("POST /v1/responses/resp_1/cancel ", response_answer(status="cancelled"))
    item = {"id": "msg_0", "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}
    upstream.at("GET /v1/responses/resp_1/input_items ", {"object": "list", "data": [item], "has_more": False})
    upstream.at("DELETE /v1/responses/resp_1 ", b"", "200 OK")
    assert client.responses.create(model="gpt-4o", input="Hi").output_text == "Hello."
    assert client.responses.retrieve("resp_1").id == "resp_1"
    assert client.responses.cancel("resp_1").status == "cancelled"
    assert [one.id for one in client.responses.input_items.list("resp_1")] == ["msg_0"]
    client.responses.delete("resp_1")


def test_responses_as_a_stream(client: OpenAI, upstream: StandIn) -> None:
    empty = response_answer(status="in_progress", output=[])
    text = {"type": "output_text", "text": "", "annotations": []}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": empty}),
        ("response.output_item.added", {"output_index": 0, "item": message}),
        ("response.content_part.added", {**place, "part": text}),
        ("response.output_text.delta", {**place, "delta": "Hel", "logprobs": []}),
        ("response.output_text.delta", {**place, "delta": "lo.", "logprobs": []}),
        ("response.completed", {"response": response_answer()}),
    ]
    upstream.stream(
        *(
            f"event: {name}\ndata: {json.dumps({'type': name, 'sequence_number': at, **data})}\n\n".encode()
            for at, (name, data) in enumerate(events)
        )
    )
    with client.responses.stream(model="gpt-4o", input="Hi") as stream:
        seen = [(event.type, getattr(event, "delta", None)) for event in stream]
        found = stream.get_final_response()
    assert [name for name, _ in seen] == [name for name, _ in events]
    assert "".join(delta or "" for _, delta in seen) == found.output_text == "Hello."
