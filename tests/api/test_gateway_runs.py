"""Runs go the way that the request named which created them (GATEWAY PRX-19, PRX-20, PRX-03), over real HTTP.

Stand-in endpoints say which of them was asked, with whose key, and how often.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loomgate import clock, settings
from tests.api.driving import (
    F,
    eventually,
    hurried,
    load,
    play,
    settle,
    start,
    steps,
    submit,
    waiting,
    written,
)
from tests.api.gated import KEY_A, Site, fallback, said
from tests.support.server import BETA, Client, ProcessServer, Server
from tests.support.storage import at_rest
from tests.support.upstream import QUOTA, Fault, ModelEndpoint

OWN_KEY = "sk-own-0123456789abcdef0123456789"
TWO_TURNS = "/call f\n/turn\n/say Done."


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("PRX-19", "FB-01")
@pytest.mark.parametrize("status", [429, 500, 503, 404, 401])
def test_a_run_falls_back_at_once(site: Site, status: int) -> None:
    site.a.faults.append(Fault(status=status, headers={"retry-after": "50"}))
    client = site.client(config=fallback("patient", "b"))
    before = clock.now()
    run = play(client, "/say Hello.", model="any")
    assert (run["status"], said(client, run)) == ("completed", ["Hello."])
    assert site.asked == (1, 1)
    assert clock.now() - before < 10  # the endpoint's wish to be left alone is no reason to wait for another one
    (record,) = site.logs(client, run)
    assert record["response"]["lastUsedOptionJsonPath"] == "config.targets[1]"


@pytest.mark.behaviour("FB-02")
def test_only_the_listed_statuses_lead_on(site: Site) -> None:
    config = fallback("a", "b")
    config["strategy"]["on_status_codes"] = [429]
    client = site.client(config=config)
    site.a.faults.append(Fault(status=500))
    assert play(client, "/say Hello.", model="any")["last_error"]["code"] == "server_error"
    assert site.asked == (1, 0)
    site.a.faults.append(Fault(status=429))
    assert play(client, "/say Hello.", model="any")["status"] == "completed"
    assert site.asked == (2, 1)


def test_a_run_tries_all_targets_again_before_it_fails(site: Site) -> None:
    client = site.client(config=fallback("a", "patient"))
    site.a.faults += [Fault(status=500)] * 3
    run = start(client, "/say Hello.", model="any")
    assert (hurried(client, run)["status"], site.asked) == ("completed", (4, 0))
    (record,) = site.logs(client, run)
    assert record["metrics"]["retry_success_count"] == 1
    assert [attempt["status"] for attempt in record["loomgate"]["attempts"]] == [500, 500, 500, 200]


@pytest.mark.parametrize(("weights", "asked"), [((1, 0), (3, 0)), ((0, 5), (0, 3))])
def test_load_balance(site: Site, weights: tuple[int, int], asked: tuple[int, int]) -> None:
    targets = [{"provider": name, "weight": weight} for name, weight in zip("ab", weights, strict=True)]
    client = site.client(config={"strategy": {"mode": "loadbalance"}, "targets": targets})
    for _ in range(3):
        assert play(client, "/say Hello.", model="any")["status"] == "completed"
    assert site.asked == asked


@pytest.mark.behaviour("PRX-20")
@pytest.mark.parametrize(("tier", "asked"), [("paid", (0, 2)), ("free", (2, 0))])
def test_a_condition_on_the_metadata_of_the_creating_request(site: Site, tier: str, asked: tuple[int, int]) -> None:
    strategy = {
        "mode": "conditional",
        "conditions": [{"query": {"metadata.tier": {"$eq": "paid"}}, "then": "big"}],
        "default": "small",
    }
    targets = [{"name": "small", "provider": "a"}, {"name": "big", "provider": "b"}]
    client = site.client(config={"strategy": strategy, "targets": targets}, metadata={"tier": tier})
    run = waiting(client, TWO_TURNS, model="any")
    submit(Client(client.url, client.headers["x-portkey-api-key"]), run)  # without a word about the way
    assert settle(client, run)["status"] == "completed"
    assert site.asked == asked


@pytest.mark.behaviour("RTY-01", "RTY-10")
@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=529), Fault(cut_after=0)])
def test_retries_by_the_config(site: Site, fault: Fault) -> None:
    client = site.client(config={"provider": "a", "retry": {"attempts": 2}})
    site.a.faults += [fault, fault]
    run = start(client, "/say Hello.", model="any")
    assert (hurried(client, run)["status"], len(site.a.requests)) == ("completed", 3)
    site.a.faults += [fault] * 3
    run = start(client, "/say Hello.", model="any")
    failed = hurried(client, run)
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "server_error")
    assert len(site.a.requests) == 6


@pytest.mark.behaviour("CCH-06")
def test_the_cache_answers_a_run(site: Site) -> None:
    config = {"provider": "a", "cache": {"mode": "simple"}}
    client = site.client("cached", config=config)
    first = play(client, "/say Once.\n/usage prompt=7 completion=3", model="any")
    second = play(client, "/say Once.\n/usage prompt=7 completion=3", model="any")
    assert said(client, first) == said(client, second) == ["Once."]
    assert first["usage"]["total_tokens"] == second["usage"]["total_tokens"] == 10
    assert len(site.a.requests) == 1
    statuses = [site.logs(client, run)[0]["metrics"]["cache_status"] for run in (first, second)]
    assert statuses == ["MISS", "HIT"]
    # Whoever asks for a new answer gets one.
    again = site.client("cached", config=config, cache_force_refresh="true")
    play(again, "/say Once.\n/usage prompt=7 completion=3", model="any")
    assert len(site.a.requests) == 2


def test_the_cache_answers_with_tool_calls(site: Site) -> None:
    client = site.client("cached", config={"provider": "a", "cache": {"mode": "simple"}})
    for _ in range(2):
        run = waiting(client, '/say Wait.\n/call f {"x": [1, "ü"]}\n/call g\n/turn\n/say Done.', model="any")
        made = [call["function"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]]
        assert made == [{"name": "f", "arguments": '{"x": [1, "ü"]}'}, {"name": "g", "arguments": "{}"}]
        assert said(client, run) == ["Wait."]
    assert len(site.a.requests) == 1


def _guardrail(side: str, *, deny: bool) -> dict[str, Any]:
    hated = {"default.regexMatch": {"rule": "forbidden", "not": True}, "deny": deny}
    return {"provider": "a", f"{side}_guardrails": [hated]}


@pytest.mark.behaviour("PRX-19", "GR-10", "GR-12")
def test_an_input_guardrail(site: Site) -> None:
    text = "Say the forbidden.\n/say Well."
    client = site.client(config=_guardrail("input", deny=True))
    failed = play(client, text, model="any")
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "invalid_prompt")
    assert "guardrail" in failed["last_error"]["message"]
    assert written(client, failed) == steps(client, failed) == site.a.requests == []
    (record,) = site.logs(client, failed)
    assert record["response"]["status"] == 446
    lenient = site.client(config=_guardrail("input", deny=False))
    run = play(lenient, text, model="any")
    assert (run["status"], said(lenient, run)) == ("completed", ["Well."])
    (record,) = site.logs(lenient, run)
    assert record["response"]["status"] == 246
    assert play(client, "Say what is allowed.\n/say Well.", model="any")["status"] == "completed"


@pytest.mark.behaviour("PRX-19", "GR-11")
def test_an_output_guardrail(site: Site) -> None:
    client = site.client(config=_guardrail("output", deny=True))
    failed = play(client, "/say This is for" + "bidden.", model="any")
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "invalid_prompt")
    assert written(client, failed) == steps(client, failed) == []  # not a word of it went out
    run = play(client, "/say This is not.", model="any")
    assert (run["status"], said(client, run)) == ("completed", ["This is not."])
    lenient = site.client(config=_guardrail("output", deny=False))
    run = play(lenient, "/say This is forbidden.", model="any")
    assert (run["status"], said(lenient, run)) == ("completed", ["This is forbidden."])


@pytest.mark.behaviour("FB-06")
def test_a_verdict_may_lead_to_another_model(site: Site) -> None:
    config = fallback("a", "b")
    config["strategy"]["on_status_codes"] = [446]
    config["targets"][0] |= _guardrail("input", deny=True)
    client = site.client(config=config)
    run = play(client, "The forbidden.\n/say Well.", model="any")
    assert (run["status"], site.asked) == ("completed", (0, 1))


@pytest.mark.behaviour("TMO-01", "PRX-19")
@pytest.mark.parametrize("headers", [{"config": {"provider": "a", "request_timeout": 300}}, {"request_timeout": "300"}])
def test_a_time_out_of_the_request(site: Site, headers: dict[str, Any]) -> None:
    site.a.faults.append(Fault(wait=1000))
    client = site.client(**headers)
    run = start(client, "/say Hello.", model="model-a")
    failed = hurried(client, run)
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "server_error")
    assert len(site.a.requests) == 1


@pytest.mark.behaviour("FB-07")
def test_a_time_out_leads_on(site: Site) -> None:
    site.a.faults.append(Fault(wait=1000))
    client = site.client(config=fallback("a", "b", request_timeout=300))
    run = start(client, "/say Hello.", model="any")
    assert hurried(client, run)["status"] == "completed"
    assert site.asked == (1, 1)


def test_params_of_the_config(site: Site) -> None:
    config = {
        "provider": "a",
        "override_params": {"temperature": 0.25, "model": "another"},
        "default_params": {"seed": 7, "top_p": 0.1},
        "drop_params": ["parallel_tool_calls"],
    }
    client = site.client(config=config)
    run = waiting(client, "/call f\n/call g", model="any", top_p=0.5, parallel_tool_calls=False)
    assert run["model"] == "any"
    (request,) = site.a.requests
    wanted = {"temperature": 0.25, "model": "another", "seed": 7, "top_p": 0.5}
    assert {name: request.body.get(name) for name in wanted} == wanted
    assert "parallel_tool_calls" not in request.body
    assert request.body["tools"][0]["function"]["name"] == "f"


def test_what_a_run_asks_survives_a_change_of_its_params(site: Site) -> None:
    """The same call with and without a config that makes it anew: everything else about it arrives as it is."""
    schema = {"name": "city", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}, "strict": True}
    parameters = {"type": "object", "properties": {"q": {"type": "string"}}}
    fields: dict[str, Any] = {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters, "strict": True}}, F],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": schema},
        "max_completion_tokens": 300,
        "instructions": "Be brief.",
        "temperature": 0.5,
    }
    fields["tools"][1] = {"type": "function", "function": {"name": "other"}}
    bodies: list[dict[str, Any]] = []
    for more in ({}, {"override_params": {"seed": 1}}):
        client = site.client(config={"provider": "a", **more})
        image = {"type": "image_url", "image_url": {"url": "https://example.com/x.png", "detail": "low"}}
        thread = client.thread(messages=[
            {"role": "user", "content": [{"type": "text", "text": "Look: ü"}, image]},
            {"role": "user", "content": TWO_TURNS},
        ])  # fmt: skip
        assistant = client.assistant()["id"]
        run = client.post(f"/threads/{thread['id']}/runs", {"assistant_id": assistant, "model": "any", **fields})
        run = settle(client, run)
        submit(client, run, "out")
        settle(client, run)
        bodies += [_without_ids(request.body) for request in site.a.requests]
        site.a.requests.clear()
    plain, changed = bodies[:2], bodies[2:]
    assert [{**body, "seed": 1} for body in plain] == changed


def _without_ids(body: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(body)
    for message in body["messages"]:
        for call in message.get("tool_calls", ()):
            text = text.replace(call["id"], "call")
    return json.loads(text)


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_saved_config(site: Site) -> None:
    client = site.client("house", config="spare")
    site.a.faults.append(Fault(status=500))
    assert play(client, "/say Hello.", model="any")["status"] == "completed"
    assert site.asked == (1, 1)
    another = start(client, "/say Hello.", model="any")
    upstream = site.server.run(site.server.store.runs.spec(another["id"])).upstream
    settle(client, another)
    assert (upstream.kind, upstream.name, upstream.credential) == ("config", "spare", None)
    assert (
        site.client(config="spare")
        .post("/threads", {}, status=400)["message"]
        .startswith("Invalid header 'x-portkey-config'")
    )


def test_a_config_of_the_admin_routes_is_looked_up_again_for_each_call(site: Site) -> None:
    admin = Client(site.server.url, site.server.new_key("managed", "admin"), headers={})
    slug = admin.post("/configs", {"name": "mine", "config": {"provider": "a"}})["data"]["slug"]
    client = site.client("managed", config=slug)
    run = waiting(client, TWO_TURNS, model="any")
    admin.put(f"/configs/{slug}", {"config": {"provider": "b"}})
    submit(client, run)
    assert settle(client, run)["status"] == "completed"
    assert site.asked == (1, 1)


def test_the_default_config_of_a_workspace(site: Site) -> None:
    client = site.client("defaulted")
    run = play(client, "/say Hello.", model="nobody-knows-this-model")
    assert (run["status"], site.asked) == ("completed", (0, 1))
    assert play(site.client("defaulted", provider="a"), "/say Hello.", model="any")["status"] == "completed"
    assert site.asked == (1, 1)


@pytest.mark.parametrize(("model", "sent"), [("@team/some/model", "some/model"), ("a/some-model", "some-model")])
@pytest.mark.behaviour("AUTH-08")
def test_a_model_that_names_its_provider(site: Site, model: str, sent: str) -> None:
    client = site.client("house")
    assistant = client.assistant(model=model, tools=[F])
    assert assistant["model"] == model
    thread = client.thread(TWO_TURNS)
    run = settle(client, client.post(f"/threads/{thread['id']}/runs", {"assistant_id": assistant["id"]}))
    submit(client, run)
    run = settle(client, run)
    assert (run["status"], run["model"]) == ("completed", model)
    assert [request.body["model"] for request in site.a.requests] == [sent] * 2
    key = "sk-of-the-team-0123456789" if model.startswith("@") else KEY_A
    assert {request.headers["authorization"] for request in site.a.requests} == {f"Bearer {key}"}


def test_a_custom_host_with_the_clients_own_key(site: Site) -> None:
    client = site.client(provider="openai", custom_host=site.b.base_url, own_key=OWN_KEY)
    run = waiting(client, TWO_TURNS, model="any")
    plain = Client(client.url, client.headers["x-portkey-api-key"])
    submit(plain, run)
    assert settle(plain, run)["status"] == "completed"
    assert [request.headers["authorization"] for request in site.b.requests] == [f"Bearer {OWN_KEY}"] * 2
    assert site.asked == (0, 2)


def test_headers_that_go_along(site: Site) -> None:
    client = site.client(config={"provider": "a", "forward_headers": ["X-Tenant"]})
    client.headers["X-Tenant"] = "tenant-of-this-run"
    client.headers["X-Other"] = "other"
    run = waiting(client, TWO_TURNS, model="any")
    plain = Client(client.url, client.headers["x-portkey-api-key"])
    submit(plain, run)
    assert settle(plain, run)["status"] == "completed"
    assert [request.headers.get("x-tenant") for request in site.a.requests] == ["tenant-of-this-run"] * 2
    assert "x-other" not in site.a.requests[0].headers


@pytest.mark.behaviour("GERR-10", "PRX-19")
def test_the_budget_of_a_virtual_key(site: Site) -> None:
    admin = Client(site.server.url, site.server.new_key("thrifty", "admin"), headers={})
    limits = {"type": "tokens", "credit_limit": 100}
    admin.post(
        "/virtual-keys",
        {"name": "tight", "provider": "a", "key": "sk-tight-0123456789abcdef", "usage_limits": limits},
    )
    slug = admin.get("/virtual-keys")["data"][0]["slug"]
    client = site.client("thrifty", virtual_key=slug)
    script = "/usage prompt=90 completion=20\n/call f\n/turn\n/say Done."
    run = waiting(client, script, model="any")
    site.logs(client, run)  # what is spent is counted with the record
    submit(client, run)
    failed = settle(client, run)
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "rate_limit_exceeded")
    assert "budget" in failed["last_error"]["message"]
    assert len(site.a.requests) == 1


def test_a_run_waits_for_the_rate_limit_of_its_virtual_key(site: Site) -> None:
    admin = Client(site.server.url, site.server.new_key("slow", "admin"), headers={})
    limits = [{"type": "requests", "unit": "rpm", "value": 2}]
    admin.post(
        "/virtual-keys", {"name": "tight", "provider": "a", "key": "sk-tight-0123456789abcdef", "rate_limits": limits}
    )
    slug = admin.get("/virtual-keys")["data"][0]["slug"]
    client = site.client("slow", virtual_key=slug)
    clock.advance(110 - clock.now() % 60)  # late in a minute: there is room again in less than one
    play(client, "/say Hello.", model="any")
    run = waiting(client, TWO_TURNS, model="any")
    submit(client, run)
    done = hurried(client, run, 5)
    assert (done["status"], len(site.a.requests)) == ("completed", 3), done["last_error"]


# --- what becomes of a run (PRX-19) ----------------------------------------------------------------------------------


@pytest.mark.behaviour("PRX-19", "RUN-97")
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(status=446, body={"error": {"message": "hooks failed", "type": "hooks_failed"}}), "invalid_prompt"),
        (Fault(status=400), "invalid_prompt"),
        (Fault(status=412, body={"error": {"message": "budget"}}), "rate_limit_exceeded"),
        (Fault(status=429), "rate_limit_exceeded"),
        (Fault(status=429, body=QUOTA), "rate_limit_exceeded"),
        (Fault(status=408), "server_error"),
        (Fault(status=500), "server_error"),
        (Fault(status=502, body={}), "server_error"),
        (Fault(status=503), "server_error"),
        (Fault(status=529), "server_error"),
        (Fault(status=401), "server_error"),
        (Fault(status=404), "server_error"),
    ],
)
@pytest.mark.parametrize("config", [None, {"provider": "a"}])
def test_what_an_endpoints_answer_makes_of_a_run(
    site: Site, fault: Fault, code: str, config: dict[str, Any] | None
) -> None:
    site.a.faults.append(fault)
    client = site.client(**({} if config is None else {"config": config}))
    failed = play(client, "/say Hello.", model="model-a")
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", code)
    assert len(site.a.requests) == 1


def test_a_way_that_leads_nowhere_is_no_fault_of_the_prompt(site: Site) -> None:
    admin = Client(site.server.url, site.server.new_key("lost", "admin"), headers={})
    slug = admin.post("/configs", {"name": "mine", "config": {"provider": "a"}})["data"]["slug"]
    client = site.client("lost", config=slug)
    run = waiting(client, TWO_TURNS, model="any")
    admin.delete(f"/configs/{slug}")
    submit(Client(client.url, client.headers["x-portkey-api-key"]), run)
    failed = settle(Client(client.url, client.headers["x-portkey-api-key"]), run)
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "server_error")
    assert slug in failed["last_error"]["message"]


# --- traces and secrets ----------------------------------------------------------------------------------------------


@pytest.mark.behaviour("PRX-20")
def test_one_run_is_one_trace(site: Site) -> None:
    for headers, trace in (({"trace_id": "trace-of-mine"}, "trace-of-mine"), ({}, None)):
        client = site.client(provider="a", metadata={"_user": "ann", "n": 1}, **headers)
        run = waiting(client, TWO_TURNS, model="any")
        submit(Client(client.url, client.headers["x-portkey-api-key"]), run)
        assert settle(client, run)["status"] == "completed"
        found = site.logs(client, run, 2)
        assert len(found) == 2
        for record in found:
            assert record["metrics"]["trace_id"] == (trace or run["id"])
            assert record["loomgate"]["metadata"] == {"_user": "ann", "n": "1"}
            assert record["loomgate"]["thread_id"] == run["thread_id"]
        whole = client.raw("GET", f"/v1/logs/{found[1]['_id']}", check=False).json
        assert whole["request"]["body"]["messages"][-1]["role"] == "tool"
        assert whole["response"]["body"]["choices"][0]["message"]["content"] == "Done."
        quiet = site.client(provider="a", debug="false")
        record = site.logs(quiet, play(quiet, "/say Hello.", model="any"))[0]
        assert "body" not in client.raw("GET", f"/v1/logs/{record['_id']}", check=False).json.get("request", {})


@pytest.mark.behaviour("PRX-19")
def test_a_plain_secret_is_nowhere(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ["sk-inline-0123456789abcdef01", "sk-second-0123456789abcdef01"]
    targets = [
        {"provider": "openai", "api_key": secrets[0], "custom_host": site.a.base_url},
        {"provider": "openai", "api_key": secrets[1], "custom_host": site.b.base_url},
    ]
    client = site.client(config={"strategy": {"mode": "fallback"}, "targets": targets}, metadata={"a": "b"})
    shown: list[Any] = []
    said_key = {"error": {"message": f"Key {secrets[0]} is wrong: {secrets[1]}", "type": "invalid_request_error"}}
    site.a.faults.append(Fault(status=401, body=said_key))
    run = waiting(client, TWO_TURNS, model="any")
    shown += [run, load(client, run), steps(client, run)]
    said_key["error"]["message"] = f"Key {secrets[1]} is wrong"
    site.a.faults.append(Fault(status=401))
    site.b.faults.append(Fault(status=401, body=said_key))
    submit(client, run)
    failed = settle(client, run)
    assert failed["status"] == "failed"
    keys = [request.headers["authorization"] for request in (*site.a.requests, *site.b.requests)]
    assert keys == [f"Bearer {secrets[0]}"] * 2 + [f"Bearer {secrets[1]}"] * 2
    shown += [failed, site.logs(client, run, 2)]
    for record in shown[-1]:
        shown.append(client.raw("GET", f"/v1/logs/{record['_id']}", check=False).json)
    stored = at_rest(site.server.settings)
    for secret in secrets:
        assert secret not in str(shown)
        assert secret not in caplog.text
        assert secret.encode() not in stored


@pytest.mark.behaviour("PRX-19", "RUN-99")
def test_a_run_keeps_its_way_over_a_power_cut(
    process_server: Callable[..., ProcessServer], endpoints: Callable[[], ModelEndpoint], tmp_path: Path
) -> None:
    a, b = endpoints(), endpoints()
    server = process_server(TRUSTED_CUSTOM_HOSTS="127.0.0.1")
    targets = [
        {"provider": "openai", "api_key": OWN_KEY, "custom_host": a.base_url},
        {"provider": "openai", "api_key": OWN_KEY + "-b", "custom_host": b.base_url},
    ]
    config = {"strategy": {"mode": "fallback"}, "targets": targets}
    named = {**BETA, "x-portkey-config": json.dumps(config), "x-portkey-trace-id": "t-1"}
    client = Client(server.url, None, headers=named)
    waits = waiting(client, TWO_TURNS, model="any")
    a.faults.append(Fault(status=500))
    b.faults.append(Fault(wait=1000))
    talks = start(client, "/say Half\n/say Whole", model="any")
    eventually(lambda: len(b.requests) == 1)
    server.kill()
    server.start()
    plain = server.client()
    assert settle(plain, talks)["status"] == "completed"
    a.faults.append(Fault(status=429))
    submit(plain, waits)
    assert settle(plain, waits)["status"] == "completed"
    assert said(plain, waits) == ["Done."]
    assert {request.headers["authorization"] for request in a.requests} == {f"Bearer {OWN_KEY}"}
    assert b.requests[-1].headers["authorization"] == f"Bearer {OWN_KEY}-b"
    server.stop()
    used = settings.load({"data": str(server.data)}, env=server.environment, file=None)
    assert OWN_KEY.encode() not in at_rest(used)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or OWN_KEY.encode() not in file.read_bytes()


# --- another Loomgate behind this one ---------------------------------------------------------------------------------


@pytest.mark.behaviour("PRX-03", "PRX-05")
def test_a_server_like_this_one_behind_the_gateway(site: Site, make_server: Callable[..., Server]) -> None:
    """The Assistants API of a self-hosted server, reached through the gateway as provider ``openai``."""
    behind = make_server()
    key = behind.new_key()
    front = site.client(provider="openai", custom_host=f"{behind.url}/v1", own_key=key)

    def call(method: str, path: str, body: object = None, *, beta: bool = True) -> Any:
        headers = {} if beta else {"OpenAI-Beta": ""}
        data = None if body is None else json.dumps(body).encode()
        return front.raw(method, "/v1/proxy" + path, data, headers, check=False)

    assistant = call("POST", "/assistants", {"model": "scripted"}).json
    body = {"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "/say Hello."}]}}
    run = call("POST", "/threads/runs", body).json
    assert eventually(
        lambda: call("GET", f"/threads/{run['thread_id']}/runs/{run['id']}").json["status"] == "completed"
    )
    assert Client(behind.url, key).get("/assistants/" + assistant["id"])["id"] == assistant["id"]
    refused = call("GET", "/assistants", beta=False)
    assert (refused.status, refused.json["error"]["code"]) == (400, "invalid_beta")
