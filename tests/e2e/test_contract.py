"""What the official SDK itself does, and what therefore must not change under it (BEHAVIOUR statements tagged S)."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from loomgate.wire.ids import new_id
from tests.support import invalid, openapi, schema, sse
from tests.support.server import Client, Server


@contextmanager
def answering(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives ``answers`` one after the other, the last one for ever; its URL, and the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "content-length": str(len(body)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}/v1", asked
    finally:
        served.shutdown()
        thread.join()
        served.server_close()


_THREAD = b'{"id":"thread_a","object":"thread","created_at":1,"metadata":{},"tool_resources":{}}'
_REFUSED = b'{"error":{"message":"m","type":"t","param":null,"code":null}}'


@pytest.mark.behaviour("ERR-04", "HDR-24")
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_what_clients_try_again_and_when(status: int) -> None:
    # Of the two the milliseconds count, and either counts more than the client's own half second.
    refusal = (status, {"retry-after-ms": "20", "retry-after": "60"}, _REFUSED)
    with answering(refusal, (200, {}, _THREAD)) as (url, asked), OpenAI(base_url=url, api_key="k") as client:
        begun = time.monotonic()
        assert client.beta.threads.create().id == "thread_a"
        assert len(asked) == 2
        assert time.monotonic() - begun < 30


@pytest.mark.behaviour("HDR-24")
@pytest.mark.parametrize(("status", "word", "calls"), [(503, "false", 1), (400, "true", 3)])
def test_should_retry_overrides_the_other_rules(status: int, word: str, calls: int) -> None:
    refusal = (status, {"x-should-retry": word, "retry-after-ms": "1"}, _REFUSED)
    with answering(refusal) as (url, asked), OpenAI(base_url=url, api_key="k") as client:
        with pytest.raises(openai.APIStatusError):
            client.beta.threads.create()
        assert len(asked) == calls


@pytest.mark.behaviour("ERR-04", "ERR-41", "ERR-42")
def test_refusals_are_never_of_a_kind_that_clients_repeat(client: Client) -> None:
    assistant = client.assistant()
    thread = client.thread("/wait 500")
    runs = f"/v1/threads/{thread['id']}/runs"
    good = json.dumps({"assistant_id": assistant["id"]}).encode()
    statuses = {
        client.raw("POST", runs, json.dumps(row.body).encode()).status for row in invalid.invalid_bodies("createRun")
    }
    client.raw("POST", runs, good)
    statuses |= {client.raw("POST", runs, good).status, client.raw("POST", f"{runs}/run_x/cancel", b"").status}
    assert statuses == {400, 404}


@pytest.mark.behaviour("HDR-03")
def test_which_calls_carry_the_beta_header(server: Server) -> None:
    seen: list[tuple[str, str | None]] = []

    def note(request: httpx.Request) -> None:
        seen.append((request.url.path.split("/")[2], request.headers.get("openai-beta")))

    transport = httpx.Client(event_hooks={"request": [note]})
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.new_key(), max_retries=0, http_client=transport) as sdk:
        sdk.beta.assistants.list()
        thread = sdk.beta.threads.create()
        sdk.beta.threads.messages.list(thread.id)
        for call in (sdk.vector_stores.list, sdk.files.list):
            with pytest.raises(openai.NotFoundError):
                call()
    headers = dict(seen)
    assert headers["assistants"] == headers["threads"] == headers["vector_stores"] == "assistants=v2"
    assert headers["files"] is None


@pytest.mark.behaviour("ID-07")
def test_an_empty_id_never_leaves_the_client(server: Server) -> None:
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key=server.new_key()) as sdk,
        pytest.raises(ValueError, match="non-empty"),
    ):
        sdk.beta.threads.retrieve("")


@pytest.mark.behaviour("ID-10")
def test_ids_are_never_given_twice(client: Client) -> None:
    gone = client.assistant()["id"]
    client.delete(f"/assistants/{gone}")
    assert gone not in {client.assistant()["id"] for _ in range(20)}
    assert len({new_id("run") for _ in range(50_000)}) == 50_000


@pytest.mark.behaviour("ASST-09", "ERR-05")
def test_what_the_description_says_of_its_operations() -> None:
    for path, methods in openapi.document()["paths"].items():
        for method, told in methods.items():
            if method in ("get", "post", "delete") and path.startswith(("/assistants", "/threads")):
                assert bool(told.get("deprecated")) == path.startswith("/assistants"), (method, path)
                assert set(told["responses"]) <= {"200", "429"}, (method, path)


@pytest.mark.behaviour("V1-06")
@pytest.mark.parametrize("value", [1, True, 1.5, None, ["a"], {"a": "b"}])
def test_metadata_is_not_coerced(client: Client, value: object) -> None:
    error = client.raw("POST", "/v1/threads", json.dumps({"metadata": {"k": value}}).encode()).error
    assert (error["code"], error["param"]) == ("invalid_type", "metadata.k")


_STORIES = [
    "/say Hello.",
    "/say One moment.\n/call f {}",
    "/refuse No.",
    "/say Hal\n/error 500",
    "/say Hal\n/finish length",
    "/say Hal\n/finish content_filter",
]


@pytest.mark.behaviour("SSE-03", "SSE-05", "SSE-06", "SSE-21")
@pytest.mark.parametrize("story", _STORIES)
def test_streams_have_documented_events_only_in_an_order_that_clients_can_follow(client: Client, story: str) -> None:
    function = {"type": "function", "function": {"name": "f"}}
    body = {
        "assistant_id": client.assistant(tools=[function])["id"],
        "thread": {"messages": [{"role": "user", "content": story}]},
        "stream": True,
    }
    stream = client.raw("POST", "/v1/threads/runs", json.dumps(body).encode()).body
    events = sse.parse(stream)
    assert {event.name for event in events} <= set(schema.events())
    assert stream.endswith(b"event: done\ndata: [DONE]\n\n")
    assert stream.count(b"[DONE]") == 1
    open_message = None
    for event in events:
        if event.name == "thread.message.created":
            open_message = json.loads(event.data)["id"]
        elif event.name.startswith("thread.message."):
            assert json.loads(event.data)["id"] == open_message


@pytest.mark.behaviour("SDK-08")
def test_no_call_waits_for_the_model(server: Server) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.new_key(), timeout=10, max_retries=0) as sdk:
        assistant = sdk.beta.assistants.create(model="scripted")
        thread = sdk.beta.threads.create(messages=[{"role": "user", "content": "/wait 86400"}])
        run = sdk.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
        assert sdk.beta.threads.runs.retrieve(run.id, thread_id=thread.id).status in ("queued", "in_progress")
        assert sdk.beta.threads.runs.cancel(run.id, thread_id=thread.id).status == "cancelling"
