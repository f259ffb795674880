"""What holds for every route: URLs, methods, headers, the order of checks (BEHAVIOUR sections 1, 9; GATEWAY RH-07)."""

import http.client
import json
import re
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from loomgate.errors import StoreError
from loomgate.http.routes import ROUTES
from tests.support import openapi
from tests.support.server import BETA, Client, Server

_IDS = {
    "assistant_id": "asst_x",
    "thread_id": "thread_x",
    "message_id": "msg_x",
    "run_id": "run_x",
    "step_id": "step_x",
}


@pytest.mark.behaviour("CONV-01")
def test_the_route_table_is_the_description() -> None:
    found = [openapi.find_operation(row.method, "/v1" + row.path.format(**_IDS)) for row in ROUTES]
    assert {operation.id for operation in found if operation is not None} == {
        operation.id
        for operation in openapi.operations().values()
        if operation.template.startswith(("/assistants", "/threads"))
    }
    assert len([row for row in ROUTES if not row.extension]) == 23
    assert [row.path for row in ROUTES if row.extension] == ["/threads", "/threads/{thread_id}/runs/{run_id}/stream"]


@pytest.mark.behaviour("HDR-01", "HDR-06", "HDR-08", "ERR-10", "ERR-13")
@pytest.mark.parametrize("row", ROUTES, ids=lambda row: f"{row.method} {row.path}")
def test_every_route_asks_for_a_key_then_for_the_beta_header(server: Server, client: Client, row: object) -> None:
    method, path = row.method, "/v1" + row.path.format(**_IDS)  # type: ignore[attr-defined]
    body = b"{}" if method == "POST" else None
    nobody = Client(server.url, headers={})
    refused = nobody.raw(method, path, body)
    assert refused.status == 401
    assert refused.error["message"].startswith("You didn't provide an API key.")
    assert (refused.error["param"], refused.error["code"]) == (None, None)
    assert client.raw(method, path, body, {"OpenAI-Beta": ""}).error == {
        "message": "You must provide the 'OpenAI-Beta' header to access the Assistants API. Please try again by "
        "setting the header 'OpenAI-Beta: assistants=v2'.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_beta",
    }
    if "{" in row.path:  # type: ignore[attr-defined]
        assert client.raw(method, path, body).status == 404


@pytest.mark.behaviour("HDR-02", "HDR-05")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("assistants=v2", None),
        ("realtime=v1, assistants=v2", None),
        ("assistants=v1,assistants=v2", None),
        ("assistants=v1", "The v1 Assistants API has been deprecated. Please try again by setting the header "
         "'OpenAI-Beta: assistants=v2'."),
        ("Assistants=v2", "You must provide the 'OpenAI-Beta' header"),
        ("realtime=v1", "You must provide the 'OpenAI-Beta' header"),
    ],
)  # fmt: skip
def test_the_beta_header(client: Client, value: str, message: str | None) -> None:
    response = client.raw("GET", "/v1/assistants", headers={"OpenAI-Beta": "", "openai-BETA": value})
    if message is None:
        assert response.status == 200
    else:
        assert (response.status, response.error["code"]) == (400, "invalid_beta")
        assert response.error["message"].startswith(message)


@pytest.mark.behaviour("HDR-07", "SDK-04", "SDK-12")
def test_headers_that_change_nothing(client: Client) -> None:
    headers = {
        "OpenAI-Organization": "org-1", "OpenAI-Project": "proj_1", "Idempotency-Key": "k",
        "X-Stainless-Poll-Helper": "true", "X-Stainless-Stream-Helper": "threads.runs.create_and_stream",
        "x-portkey-metadata": '{"_user":"u"}', "x-portkey-debug": "false",
        "x-portkey-strict-open-ai-compliance": "false",
    }  # fmt: skip
    assert client.get("/assistants", headers=headers)["data"] == []


@pytest.mark.behaviour("CONV-03", "HDR-20", "HDR-21", "ERR-01")
def test_headers_of_every_answer(server: Server) -> None:
    client = server.client("acme")
    nobody = Client(server.url)
    answers = [
        client.raw("GET", "/v1/assistants"),
        client.raw("GET", "/v1/assistants/asst_x"),
        client.raw("POST", "/v1/assistants", b"{"),
        client.raw("GET", "/v1/nowhere"),
        client.raw("PUT", "/v1/assistants"),
        nobody.raw("GET", "/v1/assistants"),
        nobody.raw("GET", "/healthz"),
    ]
    assert [answer.status for answer in answers] == [200, 404, 400, 404, 405, 401, 200]
    for answer in answers:
        assert answer.headers["content-type"] == "application/json"
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["x-request-id"])
        assert answer.headers["openai-version"] == "2020-10-01"
        assert re.fullmatch(r"\d+", answer.headers["openai-processing-ms"])
        assert "server" not in answer.headers
    assert [answer.headers["openai-organization"] for answer in answers[:3]] == ["acme"] * 3
    assert all(answer.headers["openai-organization"] for answer in answers)
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


@pytest.mark.behaviour("CONV-12")
@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/nowhere", "/v1/threads/", "/v2/threads", "/v1/threads/a%2Fb/x"])
def test_unknown_urls(client: Client, path: str) -> None:
    response = client.raw("GET", path)
    assert response.status == 404
    assert response.error["type"] == "invalid_request_error"
    assert response.error["message"].startswith("Invalid URL (GET /")


@pytest.mark.behaviour("CONV-12")
@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/threads/thread_x", "DELETE, GET, HEAD, OPTIONS, POST"),
        ("PATCH", "/v1/threads/thread_x", "DELETE, GET, HEAD, OPTIONS, POST"),
        ("GET", "/v1/threads/runs", "OPTIONS, POST"),
        ("DELETE", "/v1/threads/thread_x/runs/run_x", "GET, HEAD, OPTIONS, POST"),
        ("GET", "/v1/threads/thread_x/runs/run_x/cancel", "OPTIONS, POST"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_wrong_methods(client: Client, method: str, path: str, allow: str) -> None:
    response = client.raw(method, path)
    assert (response.status, response.headers["allow"]) == (405, allow)
    assert response.error["type"] == "invalid_request_error"


def test_head_and_options(client: Client) -> None:
    get, head = client.raw("GET", "/v1/assistants"), client.raw("HEAD", "/v1/assistants", check=False)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    options = client.raw("OPTIONS", "/v1/assistants", check=False)
    assert (options.status, options.body) == (204, b"")
    assert options.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert "access-control-allow-origin" not in options.headers


@pytest.mark.behaviour("HDR-08", "HDR-09", "RUN-15", "ID-08")
def test_the_earlier_of_two_mistakes_is_reported(client: Client) -> None:
    thread = client.thread()["id"]
    bad = {"metadata": {"k": True}, "foo": 1}
    for path in ("/assistants/asst_x", "/threads/thread_x", "/threads/thread_x/messages", "/threads/thread_x/runs",
                 "/threads/thread_x/messages/msg_x", "/threads/thread_x/runs/run_x",
                 "/threads/thread_x/runs/run_x/cancel",
                 "/threads/thread_x/runs/run_x/submit_tool_outputs"):  # fmt: skip
        assert client.post(path, bad, status=404)["message"].startswith(("No thread", "No assistant"))
    assert "No message" in client.post(f"/threads/{thread}/messages/msg_x", bad, status=404)["message"]
    assert "No run" in client.post(f"/threads/{thread}/runs/run_x", bad, status=404)["message"]
    unknown = {"assistant_id": "asst_unknown"}
    assert "No thread" in client.post("/threads/thread_x/runs", unknown, status=404)["message"]
    error = client.post(f"/threads/{thread}/runs", unknown, status=404)
    assert error["message"] == "No assistant found with id 'asst_unknown'."
    assert client.post(f"/threads/{thread}/runs", {}, status=400)["message"] == (
        "Missing required parameter: 'assistant_id'."
    )
    error = client.post(f"/threads/{thread}/runs", {"assistant_id": "foo"}, status=400)
    assert (error["param"], error["code"]) == ("assistant_id", "invalid_value")
    assert error["message"] == "Invalid 'assistant_id': 'foo'. Expected an ID that begins with 'asst'."


@pytest.mark.behaviour("HDR-09", "RUN-88")
def test_the_body_is_checked_before_the_state(client: Client) -> None:
    body = {"assistant_id": client.assistant()["id"], "thread": {"messages": [{"role": "user", "content": "/wait 60"}]}}
    run = client.post("/threads/runs", body)
    path = f"/threads/{run['thread_id']}/runs/{run['id']}"
    error = client.post(path, {"metadata": {"modified": True}}, status=400)
    assert (error["param"], error["code"]) == ("metadata.modified", "invalid_type")
    assert client.post(path + "/cancel", {"x": 1}, status=400)["code"] == "unknown_parameter"
    assert client.post(path + "/cancel")["status"] == "cancelling"


@pytest.mark.behaviour("CONV-13", "CONV-14")
def test_include(client: Client) -> None:
    body = {"assistant_id": client.assistant(instructions="Hi.")["id"]}
    path = f"/threads/{client.thread()['id']}/runs"
    value = "step_details.tool_calls%5B%2A%5D.file_search.results%5B*%5D.content"
    run = client.post(f"{path}?include[]={value}", body)
    for name in ("include", "include%5B%5D", "include[]"):
        client.get(f"{path}/{run['id']}/steps?{name}={value}")
        error = client.get(f"{path}/{run['id']}/steps?{name}=foo", status=400)
        assert (error["param"], error["code"]) == ("include[0]", "invalid_value")
        client.get(f"{path}/{run['id']}/steps/step_x?{name}=foo", status=400)
        assert client.post(f"{path}?{name}=foo", body, status=400)["param"] == "include[0]"


def test_a_trace_id_comes_back(client: Client) -> None:
    for path in ("/v1/assistants", "/v1/assistants/asst_x"):
        headers = {"x-portkey-trace-id": "trace 1"}
        assert client.raw("GET", path, headers=headers).headers["x-portkey-trace-id"] == "trace 1"
    assert "x-portkey-trace-id" not in client.raw("GET", "/v1/assistants").headers


@pytest.mark.behaviour("ERR-60", "ERR-71", "ERR-61", "HDR-23")
def test_failures_of_the_server(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> bytes:
        raise RuntimeError("secret detail: select * from threads")

    monkeypatch.setattr(server.store.threads, "body", broken)
    response = client.raw("GET", "/v1/threads/thread_x")
    assert response.status == 500
    assert response.error["type"] == "server_error"
    assert response.headers["x-request-id"] in response.error["message"]
    assert "secret" not in response.body.decode()

    async def unusable(*_: object) -> bytes:
        raise StoreError("/secret/path: disk full")

    monkeypatch.setattr(server.store.threads, "body", unusable)
    response = client.raw("GET", "/v1/threads/thread_x")
    assert (response.status, response.error["type"]) == (503, "server_error")
    assert int(response.headers["retry-after"]) >= 1
    assert "secret" not in response.body.decode()


def test_health(server: Server, keyless: Server) -> None:
    for made in (server, keyless):
        for path in ("/healthz", "/readyz"):
            assert Client(made.url, headers={}).raw("GET", path).json == {"status": "ok"}


def test_one_connection_takes_many_requests(server: Server, client: Client) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    headers = {**BETA, "Authorization": f"Bearer {client.key}", "Content-Type": "application/json"}
    seen: set[str | None] = set()
    for body in (b"{}", b"{", b"", b"[]", b'{"metadata":{}}'):
        connection.request("POST", "/v1/threads", body, headers)
        answer = connection.getresponse()
        assert json.loads(answer.read())
        seen.add(answer.getheader("x-request-id"))
        assert answer.getheader("connection") is None
    assert len(seen) == 5
    connection.close()


def test_azure_addresses(server: Server, client: Client, make_server: Callable[..., Server]) -> None:
    bare = Client(server.url, headers={})
    key = {"api-key": client.key or ""}
    for prefix, query in (("/openai", "?api-version=2024-05-01-preview"), ("/openai/v1", "")):
        made = bare.raw("POST", f"{prefix}/assistants{query}", b'{"model":"scripted"}', key)
        assert made.status == 200
        listed = bare.raw("GET", f"{prefix}/assistants{query}", None, {"Authorization": f"Bearer {client.key}"})
        assert made.json["id"] in [item["id"] for item in listed.json["data"]]
        wrong = bare.raw("GET", f"{prefix}/assistants{query}", None, {"api-key": "sk-wrong-key-0123456789"})
        assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
        old = bare.raw("GET", f"{prefix}/assistants{query}", None, {**key, "OpenAI-Beta": "assistants=v1"})
        assert old.error["code"] == "invalid_beta"
    for query in ("", "?api-version="):
        missing = bare.raw("GET", "/openai/assistants" + query, None, key)
        assert (missing.status, missing.error["param"]) == (400, "api-version")
    assert bare.raw("GET", "/v1/assistants", None, {**key, **BETA}).status == 401
