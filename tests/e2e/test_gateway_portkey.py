"""Portkey's own clients on the gateway, unchanged: every way that they have of saying where a call goes."""

import base64
import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import says of its own dependencies is not ours
    import portkey_ai

from loomgate.wire.chat import Usage
from tests.providers.conformance.suite import Answer
from tests.providers.conformance.wire_anthropic import AnthropicWire
from tests.support.node import play
from tests.support.server import Server
from tests.support.standin import StandIn, chat_answer, chat_events, response_answer
from tests.support.way import OWN

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

HI: Any = [{"role": "user", "content": "Hi"}]
STORED = "sk-stored-key-0123456789"
SLUG = "team-openai"
ANTHROPIC = AnthropicWire("anthropic", "claude-sonnet-4-6")
_workspaces = count(1)


@dataclass
class Place:
    """A workspace with a virtual key for `upstream`; ``connect`` makes its clients."""

    url: str
    key: str
    admin: str
    upstream: StandIn
    stack: ExitStack

    def connect(self, **options: Any) -> Any:
        """A client with ``options``, closed at the end of the test."""
        made: Any = portkey_ai.Portkey(**{"api_key": self.key, "base_url": f"{self.url}/v1", **options})
        for inner in (made._client, made.openai_client):
            self.stack.callback(inner.close)
        return made

    def direct(self, **options: Any) -> Any:
        """A client with the vendor's key and address in its hand."""
        here = {"provider": "openai", "custom_host": f"{self.upstream.url}/v1", "Authorization": OWN}
        return self.connect(**{**here, **options})

    def targets(self, *keys: str, **more: Any) -> dict[str, Any]:
        """A config with `upstream` as OpenAI once for each of ``keys``."""
        here = {"provider": "openai", "custom_host": f"{self.upstream.url}/v1"}
        return {"targets": [{**here, "api_key": key} for key in keys], **more}


@pytest.fixture
def place(gateway: Server, upstream: StandIn) -> Iterator[Place]:
    """Where the clients go."""
    workspace = f"portkey-{next(_workspaces)}"
    made = gateway.store.virtual_keys.create(workspace, SLUG, "openai", STORED, f"{upstream.url}/v1")
    assert gateway.run(made)
    with ExitStack() as stack:
        admin = gateway.new_key(workspace, "admin")
        yield Place(gateway.url, gateway.new_key(workspace), admin, upstream, stack)


def sent_key(place: Place) -> str:
    """The key that went to the vendor; this server's never does, nor a header for it."""
    asked = place.upstream.last
    assert place.key.encode() not in asked.head
    assert b"x-portkey" not in asked.head.lower()
    return asked.headers["authorization"].removeprefix("Bearer ")


# --- where to --------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("AUTH-01", "AUTH-02", "AUTH-08", "RH-02", "RH-03", "RH-05", "RH-06")
@pytest.mark.parametrize(
    ("options", "model", "key"),
    [
        ({"virtual_key": SLUG}, "gpt-4o", STORED),
        ({"provider": f"@{SLUG}"}, "gpt-4o", STORED),
        ({}, f"@{SLUG}/gpt-4o", STORED),
        ({"provider": "openai", "custom_host": "", "Authorization": OWN}, "gpt-4o", OWN),
    ],
    ids=["virtual_key", "provider-slug", "model-slug", "provider-and-host"],
)
def test_every_way_of_naming(place: Place, options: dict[str, Any], model: str, key: str) -> None:
    if "custom_host" in options:
        options = {**options, "custom_host": f"{place.upstream.url}/v1"}
    place.upstream.say(chat_answer())
    found = place.connect(**options).chat.completions.create(model=model, messages=HI)
    assert found.choices[0].message.content == "Hi."
    assert sent_key(place) == key
    assert json.loads(place.upstream.last.body) == {"model": "gpt-4o", "messages": HI}


@pytest.mark.behaviour("AUTH-07")
def test_the_client_that_has_its_key_in_the_bearer_token(place: Place) -> None:
    """``createHeaders`` on OpenAI's client, with this server's key as its only one."""
    headers: Any = portkey_ai.createHeaders(provider=f"@{SLUG}")
    client = portkey_ai._vendor.openai.OpenAI(api_key=place.key, base_url=f"{place.url}/v1", default_headers=headers)
    place.stack.callback(client.close)
    place.upstream.say(chat_answer())
    assert client.chat.completions.create(model="gpt-4o", messages=HI).choices[0].message.content == "Hi."
    assert sent_key(place) == STORED


@pytest.mark.behaviour("RH-04", "RSP-02", "FB-01")
def test_a_config_in_the_request(place: Place) -> None:
    place.upstream.say({"error": {"message": "Overloaded."}}, "503 Busy")
    place.upstream.say(chat_answer())
    config = place.targets("sk-first", "sk-second", strategy={"mode": "fallback"})
    found = place.connect(config=config).chat.completions.create(model="gpt-4o", messages=HI)
    assert found.choices[0].message.content == "Hi."
    assert found.get_headers()["last-used-option-index"] == "config.targets[1]"
    assert [asked.headers["authorization"] for asked in place.upstream.asked] == ["Bearer sk-first", "Bearer sk-second"]


@pytest.mark.behaviour("RH-04", "AUTH-02")
def test_a_config_that_the_client_saved(place: Place) -> None:
    admin = place.connect(api_key=place.admin)
    config = {"virtual_key": SLUG, "override_params": {"temperature": 0.5}, "retry": {"attempts": 1}}
    made = admin.configs.create(name="ours", config=config)
    place.upstream.say(b"{}", "503 Busy")
    place.upstream.say(chat_answer())
    found = place.connect(config=made.slug).chat.completions.create(model="gpt-4o", messages=HI, temperature=1)
    assert found.get_headers()["retry-attempt-count"] == "1"
    assert json.loads(place.upstream.asked[-1].body)["temperature"] == 0.5
    admin.configs.update(slug=made.slug, config={"virtual_key": SLUG, "drop_params": ["temperature"]})
    place.upstream.forget()
    place.upstream.say(chat_answer())
    place.connect(config=made.slug).chat.completions.create(model="gpt-4o", messages=HI, temperature=1)
    assert "temperature" not in json.loads(place.upstream.last.body)


@pytest.mark.behaviour("AUTH-02")
def test_a_virtual_key_that_the_client_made_and_deleted(place: Place) -> None:
    """Made over the wire, used by a config that says where; gone, it is nobody's."""
    admin = place.connect(api_key=place.admin)
    made = admin.virtual_keys.create(name="mine", provider="openai", key="sk-mine-0123456789")
    config = admin.configs.create(name="uses it", config={"virtual_key": made.slug})
    admin.virtual_keys.delete(slug=made.slug)
    with pytest.raises(Exception, match=made.slug) as raised:
        place.connect(config=config.slug).chat.completions.create(model="gpt-4o", messages=HI)
    assert getattr(raised.value, "status_code", None) == 400


# --- what is said of a call ------------------------------------------------------------------------------------------


@pytest.mark.behaviour("RH-07", "RH-08", "RSP-01", "RSP-03", "RSP-04", "RSP-05")
def test_trace_and_metadata(place: Place) -> None:
    place.upstream.say(chat_answer())
    client = place.direct(trace_id="trace-9", metadata={"_user": "ann", "team": "a"})
    headers = client.chat.completions.create(model="gpt-4o", messages=HI).get_headers()
    assert headers["trace-id"] == "trace-9"
    assert (headers["provider"], headers["retry-attempt-count"], headers["cache-status"]) == ("openai", "0", "DISABLED")


@pytest.mark.behaviour("RH-08")
def test_metadata_chooses_the_target(place: Place) -> None:
    here = {"provider": "openai", "custom_host": f"{place.upstream.url}/v1"}
    config = {
        "strategy": {
            "mode": "conditional",
            "conditions": [{"query": {"metadata.plan": {"$eq": "paid"}}, "then": "big"}],
            "default": "small",
        },
        "targets": [{"name": "big", **here, "api_key": "sk-big"}, {"name": "small", **here, "api_key": "sk-small"}],
    }
    place.upstream.at("POST", chat_answer())
    for plan, key in (("paid", "sk-big"), ("free", "sk-small")):
        place.connect(config=config, metadata={"plan": plan}).chat.completions.create(model="gpt-4o", messages=HI)
        assert place.upstream.asked[-1].headers["authorization"] == f"Bearer {key}"


@pytest.mark.behaviour("RH-09", "RH-10", "RSP-04", "CCH-01")
def test_the_cache_and_its_refresh(place: Place) -> None:
    config = {**place.targets(OWN)["targets"][0], "cache": {"mode": "simple"}}
    seen: list[tuple[str, str]] = []
    for text, options in (
        ("one", {}),
        ("two", {}),
        ("three", {"cache_force_refresh": True}),
        ("four", {}),
        ("five", {"cache_namespace": "other"}),
    ):
        place.upstream.forget()
        place.upstream.say(chat_answer(text))
        found = place.connect(config=config, **options).chat.completions.create(model="gpt-4o", messages=HI)
        seen.append((found.choices[0].message.content, found.get_headers()["cache-status"]))
    assert seen == [("one", "MISS"), ("one", "HIT"), ("three", "REFRESH"), ("three", "HIT"), ("five", "MISS")]


@pytest.mark.behaviour("RH-13")
def test_headers_that_go_on(place: Place) -> None:
    place.upstream.say(chat_answer())
    client = place.direct(forward_headers=["x-team"], x_team="blue")
    client.chat.completions.create(model="gpt-4o", messages=HI)
    assert place.upstream.last.headers["x-team"] == "blue"


@pytest.mark.behaviour("RH-12")
@pytest.mark.parametrize("strict", [False, True])
def test_blocks_beside_the_text_unless_strict(place: Place, strict: bool) -> None:
    """The client sends ``false`` of itself: an answer then has what OpenAI's form has no place for."""
    place.upstream.say(ANTHROPIC.whole(Answer(thinking="Hm.", text=["Hi."], usage=Usage(9, 4))))
    client = place.direct(provider="anthropic", strict_open_ai_compliance=strict)
    found = client.chat.completions.create(model=ANTHROPIC.model, messages=HI, max_tokens=64)
    message = found.choices[0].message.model_dump()
    assert message["content"] == "Hi."
    assert ("content_blocks" in message) is not strict


# --- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("STM-01")
def test_a_stream(place: Place) -> None:
    place.upstream.stream(*chat_events("One ", "two."))
    stream = place.direct().chat.completions.create(model="gpt-4o", messages=HI, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "One two."
    place.upstream.stream(ANTHROPIC.stream(Answer(text=["Drei ", "vier."], usage=Usage(9, 4))))
    client = place.direct(provider="anthropic")
    stream = client.chat.completions.create(model=ANTHROPIC.model, messages=HI, max_tokens=64, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "Drei vier."


def test_embeddings(place: Place) -> None:
    row = {"object": "embedding", "index": 0, "embedding": [1.0, 2.0]}
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    place.upstream.say({"object": "list", "data": [row], "model": "text-embedding-3-small", "usage": usage})
    found = place.direct().embeddings.create(input="a", model="text-embedding-3-small", encoding_format="float")
    assert found.data[0].embedding == [1.0, 2.0]
    assert found.get_headers()["provider"] == "openai"


def test_the_rest_of_the_calls(place: Place) -> None:
    client, upstream = place.connect(virtual_key=SLUG), place.upstream
    model = {"id": "gpt-4o", "object": "model", "created": 1, "owned_by": "system"}
    upstream.at("GET /v1/models ", {"object": "list", "data": [model]})
    assert [one.id for one in client.models.list().data] == ["gpt-4o"]
    result = {"flagged": False, "categories": {}, "category_scores": {}}
    upstream.at("POST /v1/moderations ", {"id": "modr-1", "model": "omni", "results": [result]})
    assert client.moderations.create(input="x").results[0].flagged is False
    upstream.at("POST /v1/images/generations ", {"created": 1, "data": [{"url": "https://images.example/1"}]})
    assert client.images.generate(prompt="a dot").data[0].url == "https://images.example/1"
    upstream.at("POST /v1/audio/speech ", b"\x00\xff", "200 OK", ("Content-Type", "audio/mpeg"))
    assert client.audio.speech.create(model="tts-1", voice="alloy", input="Hello").content == b"\x00\xff"
    upstream.at("POST /v1/images/edits ", {"created": 1, "data": [{"url": "https://images.example/2"}]})
    dot = ("a.png", b"\x89PNG\r\n", "image/png")
    assert client.images.edit(model="m", image=dot, prompt="x").data[0].url == "https://images.example/2"
    assert dot[1] in upstream.asked[-1].body
    choice = {"text": "Hi.", "index": 0, "logprobs": None, "finish_reason": "stop"}
    upstream.at("POST /v1/completions ", {"id": "c", "object": "text_completion", "model": "m", "choices": [choice]})
    assert client.completions.create(model="m", prompt="Hello").choices[0].text == "Hi."
    upstream.at("POST /v1/responses ", response_answer())
    upstream.at("GET /v1/responses/resp_1 ", response_answer())
    assert client.responses.create(model="m", input="Hello").id == "resp_1"
    assert client.responses.retrieve("resp_1").id == "resp_1"
    assert {asked.headers["authorization"] for asked in upstream.asked} == {f"Bearer {STORED}"}


@pytest.mark.behaviour("PRX-15", "RT-02")
def test_files_batches_and_fine_tuning(place: Place) -> None:
    client, upstream = place.connect(virtual_key=SLUG), place.upstream
    file = {"id": "file-1", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch"}
    batch = {"id": "batch_1", "object": "batch", "input_file_id": "file-1", "status": "validating"}
    job = {"id": "ftjob-1", "object": "fine_tuning.job", "model": "m", "training_file": "file-1", "status": "queued"}
    for path, answer in {
        "POST /v1/files ": {**file, "status": "processed"},
        "GET /v1/files ": {"object": "list", "data": [file], "has_more": False},
        "GET /v1/files/file-1 ": file,
        "GET /v1/files/file-1/content ": b'{"a":1}\n',
        "DELETE /v1/files/file-1 ": {"id": "file-1", "object": "file", "deleted": True},
        "POST /v1/batches ": batch,
        "GET /v1/batches/batch_1 ": batch,
        "POST /v1/batches/batch_1/cancel ": {**batch, "status": "cancelling"},
        "POST /v1/fine_tuning/jobs ": job,
        "GET /v1/fine_tuning/jobs/ftjob-1 ": job,
        "POST /v1/fine_tuning/jobs/ftjob-1/cancel ": {**job, "status": "cancelled"},
    }.items():
        upstream.at(path, answer)
    assert client.files.create(file=("a.jsonl", b'{"odd": 1}\n'), purpose="batch").id == "file-1"
    assert b'{"odd": 1}\n' in upstream.last.body
    assert [one.id for one in client.files.list().data] == ["file-1"]
    assert client.files.retrieve("file-1").filename == "a"
    assert client.files.content("file-1").content == b'{"a":1}\n'
    assert client.files.delete("file-1").deleted is True
    window: Any = {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert client.batches.create(**window).id == "batch_1"
    assert client.batches.retrieve("batch_1").status == "validating"
    assert client.batches.cancel("batch_1").status == "cancelling"
    assert client.fine_tuning.jobs.create(model="m", training_file="file-1").id == "ftjob-1"
    assert client.fine_tuning.jobs.retrieve("ftjob-1").status == "queued"
    assert client.fine_tuning.jobs.cancel("ftjob-1").status == "cancelled"
    assert {asked.headers["authorization"] for asked in upstream.asked} == {f"Bearer {STORED}"}


@pytest.mark.behaviour("RT-05", "RT-06", "PRX-01")
def test_any_path_by_the_methods_of_the_client(place: Place) -> None:
    place.upstream.at("GET /v1/odd/path?limit=2 ", {"odd": [1, 2]})
    place.upstream.at("POST /v1/odd ", {"made": True})
    client = place.connect(virtual_key=SLUG)
    assert client.post(url="/odd", a=[1]).made is True
    assert json.loads(place.upstream.last.body) == {"a": [1]}
    assert client.get(path="/odd/path?limit=2").json()["odd"] == [1, 2]


def test_rerank(place: Place) -> None:
    """The client has no method for it but its general one."""
    place.upstream.say({"id": "r", "results": [{"index": 1, "relevance_score": 0.9}]})
    client = place.direct(provider="cohere", custom_host=place.upstream.url)
    found = client.post(url="/rerank", model="rerank-v3.5", query="q", documents=["a", "b"])
    assert [row["index"] for row in found.results] == [1]
    assert json.loads(place.upstream.last.body) == {"model": "rerank-v3.5", "query": "q", "documents": ["a", "b"]}


@pytest.mark.behaviour("GERR-01", "VAL-21")
def test_errors(place: Place) -> None:
    place.upstream.say({"error": {"message": "Bad value.", "type": "invalid_request_error"}}, "400 Bad Request")
    with pytest.raises(Exception, match=r"openai error: Bad value\.") as raised:
        place.direct().chat.completions.create(model="gpt-4o", messages=HI)
    assert getattr(raised.value, "status_code", None) == 400
    with pytest.raises(Exception, match="Name one with the header x-portkey-provider") as raised:
        place.connect().chat.completions.create(model="gpt-4o", messages=HI)
    assert getattr(raised.value, "status_code", None) == 400


# --- Node ------------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("AUTH-02", "RSP-01", "STM-01")
def test_the_clients_of_node(place: Place) -> None:
    """tests/node/ways.mjs: ``openai``, ``portkey-ai`` and ``@anthropic-ai/sdk`` for JavaScript."""
    upstream = place.upstream
    pixel = base64.b64encode(b"\x00\xff").decode()
    row = {"object": "embedding", "index": 0, "embedding": base64.b64encode(b"\x00\x00\x80?").decode()}
    said = Answer(text=["Three ", "four."], usage=Usage(9, 4))
    events = ("Content-Type", "text/event-stream")
    status, _, refusal = ANTHROPIC.error("invalid")
    refused = {"error": {"message": "Bad value.", "type": "invalid_request_error", "param": "n", "code": "bad"}}
    upstream.at("POST /v1/chat/completions ", chat_answer())
    upstream.at("POST /streamed/chat/completions ", b"", "200 OK", events, pieces=chat_events("One ", "two."))
    upstream.at("POST /refused/chat/completions ", refused, "400 Bad Request")
    upstream.at("POST /v1/embeddings ", {"object": "list", "data": [row], "model": "m"})
    upstream.at("POST /v1/images/edits ", {"created": 1, "data": [{"b64_json": pixel}]})
    upstream.at("POST /v1/audio/speech ", b"\x00\xff", "200 OK", ("Content-Type", "audio/mpeg"))
    upstream.at("POST /v1/audio/transcriptions ", {"text": "Hello."})
    upstream.at("GET /v1/models ", {"object": "list", "data": [{"id": "gpt-4o", "object": "model"}]})
    heard = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n'
    upstream.at("POST /v1/responses ", b"", "200 OK", events, pieces=(heard,))
    upstream.at("POST /v1/messages ", ANTHROPIC.whole(said))
    upstream.at("POST /v1/messages/count_tokens ", {"input_tokens": 7})
    upstream.at("POST /streamed/v1/messages ", b"", "200 OK", events, pieces=(ANTHROPIC.stream(said),))
    upstream.at("POST /refused/v1/messages ", refusal, f"{status} Bad Request")
    results = play(
        "ways.mjs",
        {
            "LOOMGATE_URL": place.url,
            "LOOMGATE_KEY": place.key,
            "ADMIN_KEY": place.admin,
            "VIRTUAL_KEY": SLUG,
            "UPSTREAM": upstream.url,
            "PROVIDER_KEY": OWN,
        },
    )
    assert {result["scenario"] for result in results} == {"openai", "portkey", "anthropic"}
    sent = {asked.headers.get("authorization") or asked.headers.get("x-api-key") for asked in upstream.asked}
    assert sent == {f"Bearer {STORED}", f"Bearer {OWN}", OWN}
    heads = b"".join(asked.head for asked in upstream.asked)
    assert place.key.encode() not in heads
    assert place.admin.encode() not in heads
