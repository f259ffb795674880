"""The log of calls, prices and metrics over HTTP, as Portkey's clients and Prometheus ask for them."""

import http.client
import json
from typing import Any

import jsonschema
import pytest

from loomgate import clock
from loomgate.http.routes import LOG_ROUTES
from loomgate.settings import Price
from loomgate.wire.calls import CallFacts, CallRecord, new_log_id
from tests.support.openapi import DATA
from tests.support.server import Client, Response, Server

_DOCUMENT: dict[str, Any] = json.loads((DATA / "gateway.openapi.json").read_text())
CUSTOM: dict[str, Any] = {
    "request": {
        "url": "https://api.someprovider.com/model/generate?key=hush",
        "method": "POST",
        "headers": {"Content-Type": "application/json", "Authorization": "Bearer hush"},
        "body": {"model": "own-model", "prompt": "What is AI?"},
    },
    "response": {
        "status": 200,
        "headers": {"Content-Type": "application/json"},
        "body": {"response": "…"},
        "response_time": 123,
    },
    "metadata": {"trace_id": "trace-1", "span_id": "span-1", "span_name": "ask", "user_id": "ada"},
}


def nullable(node: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` in JSON Schema's words."""
    if isinstance(node, list):
        return [nullable(item) for item in node]
    if not isinstance(node, dict):
        return node
    rest = {key: nullable(value) for key, value in node.items() if key not in ("nullable", "example", "examples")}
    return {"anyOf": [rest, {"type": "null"}]} if node.get("nullable") is True else rest


def check(name: str, value: object) -> None:
    """``value`` fits the component ``name`` of Portkey's description."""
    schemas = nullable(_DOCUMENT["components"]["schemas"])
    jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}},
        format_checker=jsonschema.FormatChecker(),
    ).validate(value)


def ask(client: Client, method: str, path: str, body: object = None, *, status: int = 200) -> Any:
    encoded = None if body is None else json.dumps(body).encode()
    found = client.raw(method, "/v1" + path, encoded, {"OpenAI-Beta": ""}, check=False)
    assert found.status == status, found.body[:500]
    return found.json


def workspace(server: Server, name: str) -> Client:
    made = server.client(name)
    return made


def fill(server: Server, name: str, *facts: dict[str, Any]) -> list[str]:
    records = [
        CallRecord(
            CallFacts(
                id=new_log_id(clock.now()),
                workspace=name,
                **({"created_at": clock.now(), "seconds": 0.25, "endpoint": "chat", "status": 200} | given),
            ),
            b'{"model":"gpt-4o"}',
            b'{"id":"chatcmpl-1"}',
        )
        for given in facts
    ]
    server.run(server.store.ledger.write(records))
    return [record.facts.id for record in records]


# --- reading ---


def test_a_log_is_an_object_as_portkey_describes_it(server: Server) -> None:
    client = workspace(server, "logs-1")
    (id,) = fill(
        server,
        "logs-1",
        {
            "provider": "openai",
            "model": "gpt-4o",
            "url": "http://localhost/v1/chat/completions",
            "cost": 0.02,
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "metadata": {"a": "b"},
            "trace_id": "t",
            "cache": "SEMANTIC HIT",
            "run_id": "run_1",
        },
    )
    found = ask(client, "GET", f"/logs/{id}")
    check("LogObject", found)
    assert found["_id"] == id
    assert found["request"]["body"] == {"model": "gpt-4o"}
    assert found["response"]["body"] == {"id": "chatcmpl-1"}
    assert found["response"]["responseTime"] == 250
    metrics = found["metrics"]
    assert (metrics["cost"], metrics["total_units"], metrics["cache_type"]) == (2.0, 7, "semantic")
    assert (metrics["metadata.key"], metrics["metadata.value"]) == (["a"], ["b"])
    assert found["loomgate"]["run_id"] == "run_1"


def test_a_log_of_another_workspace_is_not_there(server: Server) -> None:
    (id,) = fill(server, "logs-2", {})
    error = ask(workspace(server, "logs-2b"), "GET", f"/logs/{id}", status=404)["error"]
    assert id in error["message"]
    ask(workspace(server, "logs-2b"), "GET", "/logs/nonsense", status=404)


def test_the_list_is_newest_first_without_bodies_and_leads_on(server: Server) -> None:
    client = workspace(server, "logs-3")
    ids = fill(server, "logs-3", *({"status": 200 if n % 2 else 500} for n in range(5)))
    first = ask(client, "GET", "/logs?limit=2")
    assert [log["_id"] for log in first["data"]] == ids[:2:-1]
    assert (first["object"], first["has_more"], first["next"]) == ("list", True, ids[3])
    for log in first["data"]:
        check("LogObject", log)
        assert "body" not in log["request"]
    rest = ask(client, "GET", f"/logs?limit=100&after={first['next']}")
    assert [log["_id"] for log in rest["data"]] == ids[2::-1]
    assert (rest["has_more"], rest["next"]) == (False, None)
    failed = ask(client, "GET", "/logs?status=500")
    assert [log["_id"] for log in failed["data"]] == ids[4::-2]


def test_the_list_by_success_counts_a_stream_that_broke_as_failed(server: Server) -> None:
    client = workspace(server, "logs-success")
    broken, refused = {"status": 200, "error": "The stream broke."}, {"status": 502}
    ids = fill(server, "logs-success", {}, broken, {}, refused, {}, broken, *[{}] * 130)
    found = ask(client, "GET", "/logs?is_success=false&limit=2")
    assert [log["_id"] for log in found["data"]] == [ids[5], ids[3]]
    assert [log["metrics"]["is_success"] for log in found["data"]] == [False, False]
    assert (found["data"][0]["response"]["status"], found["data"][0]["loomgate"]["error"]) == (200, "The stream broke.")
    rest = ask(client, "GET", f"/logs?is_success=false&limit=2&after={found['next']}")
    assert [log["_id"] for log in rest["data"]] == [ids[1]]
    assert rest["next"] is None
    well = ask(client, "GET", f"/logs?is_success=true&limit=100&after={ids[7]}")
    assert [log["_id"] for log in well["data"]] == [ids[6], ids[4], ids[2], ids[0]]
    assert len(ask(client, "GET", "/logs?is_success=true&limit=100")["data"]) == 100
    both = ask(client, "GET", "/logs?is_success=false&status=502")
    assert [log["_id"] for log in both["data"]] == [ids[3]]


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("provider=openai", 2),
        ("provider=openai&model=a", 1),
        ("trace_id=t-1", 1),
        ("since=2001-01-01T00:00:00Z", 3),
        ("until=2001-01-01T00:00:00Z", 0),
        ("until=1000000", 0),
        ("since=2001-01-01", 3),
    ],
)
def test_the_list_is_filtered(server: Server, query: str, count: int) -> None:
    name = f"logs-4-{query}"
    client = workspace(server, name)
    fill(
        server,
        name,
        {"provider": "openai", "model": "a", "trace_id": "t-1"},
        {"provider": "openai", "model": "b"},
        {"provider": "anthropic", "model": "a"},
    )
    assert len(ask(client, "GET", f"/logs?{query}")["data"]) == count


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("status=ok", "status"),
        ("status=1000", "status"),
        ("is_success=1", "is_success"),
        ("since=yesterday", "since"),
        ("until=99999999999999", "until"),
        ("since=-1", "since"),
        ("after=nonsense", "after"),
        ("order=asc", "order"),
        ("page_size=3", "page_size"),
    ],
)
def test_a_query_that_cannot_be_honoured_is_refused(server: Server, query: str, param: str) -> None:
    error = ask(workspace(server, "logs-5"), "GET", f"/logs?{query}", status=400)["error"]
    assert error["param"] == param
    assert param in error["message"]


# --- writing ---


def test_a_log_of_a_call_made_elsewhere_is_kept_without_its_secrets(server: Server) -> None:
    client = workspace(server, "logs-6")
    answer = ask(client, "POST", "/logs", CUSTOM)
    assert answer["status"] == "success"
    found = ask(client, "GET", f"/logs/{answer['ids'][0]}")
    check("LogObject", found)
    assert "hush" not in json.dumps(found)
    assert found["request"]["body"] == CUSTOM["request"]["body"]
    assert found["response"]["body"] == CUSTOM["response"]["body"]
    assert found["response"]["responseTime"] == 123
    assert (found["metrics"]["ai_model"], found["metrics"]["trace_id"]) == ("own-model", "trace-1")
    assert (found["metrics"]["span_id"], found["metrics"]["span_name"]) == ("span-1", "ask")
    assert found["loomgate"]["metadata"] == {"user_id": "ada"}


def test_several_logs_come_in_one_request(server: Server) -> None:
    client = workspace(server, "logs-7")
    assert len(ask(client, "POST", "/logs", [CUSTOM, CUSTOM, CUSTOM])["ids"]) == 3
    assert len(ask(client, "GET", "/logs?trace_id=trace-1")["data"]) == 3
    assert ask(client, "POST", "/logs", []) == {"status": "success", "ids": []}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "request"),
        ({**CUSTOM, "response": {}}, "response.body"),
        ({**CUSTOM, "request": {**CUSTOM["request"], "body": "text"}}, "request.body"),
        ({**CUSTOM, "extra": 1}, "extra"),
        ([CUSTOM, {}], "logs[1].request"),
        ({**CUSTOM, "response": {**CUSTOM["response"], "status": 20}}, "response.status"),
        ([CUSTOM] * 1001, None),
    ],
)
def test_a_log_of_another_shape_is_refused(server: Server, body: object, param: str | None) -> None:
    error = ask(workspace(server, "logs-8"), "POST", "/logs", body, status=400)["error"]
    assert error["param"] == param


def test_who_has_no_key_reads_and_writes_nothing(server: Server) -> None:
    client = Client(server.url)
    for method, path in (
        ("GET", "/logs"),
        ("GET", "/logs/x"),
        ("POST", "/logs"),
        ("GET", "/model-configs/pricing/a/b"),
    ):
        assert client.raw(method, "/v1" + path, b"{}" if method == "POST" else None, check=False).status == 401


def test_portkeys_own_header_names_the_caller_and_no_upstream_is_looked_up(server: Server) -> None:
    client = workspace(server, "logs-9")
    headers = {
        "x-portkey-api-key": client.key or "",
        "x-portkey-virtual-key": "there-is-none",
        "x-portkey-config": "pc-none",
    }
    bare = Client(server.url)
    assert bare.raw("GET", "/v1/logs", headers=headers, check=False).status == 200


def test_the_official_client_writes_logs(server: Server) -> None:
    from portkey_ai import Portkey

    client = workspace(server, "logs-10")
    with Portkey(api_key=client.key, base_url=server.url + "/v1") as portkey:
        portkey.logs.create(request=CUSTOM["request"], response=CUSTOM["response"], metadata=CUSTOM["metadata"])
    assert len(ask(client, "GET", "/logs")["data"]) == 1


# --- prices ---


def test_a_price_is_told_as_portkey_tells_it(make_server: Any) -> None:
    server: Server = make_server(prices={"openai/gpt-4o": Price(input=1, output=2)})
    client = Client(server.url)
    own = ask(client, "GET", "/model-configs/pricing/openai/gpt-4o")
    check("ModelPricingConfig", own)
    assert own["pay_as_you_go"] == {"request_token": {"price": 0.0001}, "response_token": {"price": 0.0002}}
    shipped = ask(client, "GET", "/model-configs/pricing/groq/openai/gpt-oss-120b")
    check("ModelPricingConfig", shipped)
    assert ask(client, "GET", "/model-configs/pricing/openai/nothing", status=404) == {"error": "Model not found"}


# --- metrics ---


def scrape(server: Server, headers: dict[str, str]) -> Response:
    return Client(server.url).raw("GET", "/metrics", headers={"OpenAI-Beta": "", **headers}, check=False)


def test_this_machine_reads_metrics_without_a_key(server: Server) -> None:
    found = scrape(server, {})
    assert found.status == 200
    assert found.headers["content-type"].startswith("text/plain")
    assert b"loomgate_runs_active 0.0" in found.body
    assert b"process_resident_memory_bytes" in found.body


@pytest.mark.parametrize("headers", [{"X-Forwarded-For": "10.0.0.9"}, {"Host": "evil.example"}])
def test_elsewhere_metrics_need_a_key(server: Server, headers: dict[str, str]) -> None:
    assert scrape(server, headers).status == 401
    key = server.new_key("metrics")
    assert scrape(server, {**headers, "Authorization": f"Bearer {key}"}).status == 200


def test_a_server_without_keys_shows_metrics_to_this_machine_only(keyless: Server) -> None:
    assert scrape(keyless, {}).status == 200
    assert scrape(keyless, {"X-Forwarded-For": "10.0.0.9"}).status == 403


def test_metrics_are_read_and_nothing_else(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=30)
    connection.request("DELETE", "/metrics")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    connection.close()


def test_every_route_is_in_portkeys_description_or_marked() -> None:
    for row in LOG_ROUTES:
        path = row.path.replace("{log_id}", "{logId}").replace(":path", "")
        described = row.method.lower() in _DOCUMENT["paths"].get(path, {})
        assert described is not row.extension, row
