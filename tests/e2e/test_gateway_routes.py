"""Which paths are the gateway's, and how its callers say who they are and where to (GATEWAY sections 1 to 3)."""

import json
from typing import Any

import pytest

from tests.support.server import Client, Server
from tests.support.standin import StandIn, chat_answer
from tests.support.way import OWN, Way

# --- 1: routes -------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("RT-01")
def test_the_sign_of_life(gateway: Server) -> None:
    found = Client(gateway.url).raw("GET", "/", check=False)
    assert (found.status, found.body) == (200, b"AI Gateway says hey!")


MAPPED = [
    *(
        ("POST", path)
        for path in (
            "/chat/completions",
            "/completions",
            "/embeddings",
            "/images/generations",
            "/images/edits",
            "/audio/speech",
            "/audio/transcriptions",
            "/audio/translations",
            "/files",
            "/batches",
            "/batches/b/cancel",
            "/responses",
            "/fine_tuning/jobs",
            "/fine_tuning/jobs/j/cancel",
        )
    ),
    *(
        ("GET", path)
        for path in (
            "/files",
            "/files/f",
            "/files/f/content",
            "/batches",
            "/batches/b",
            "/responses/r",
            "/responses/r/input_items",
            "/fine_tuning/jobs",
            "/fine_tuning/jobs/j",
        )
    ),
    ("DELETE", "/files/f"),
    ("DELETE", "/responses/r"),
]


@pytest.mark.parametrize(("method", "path"), MAPPED)
@pytest.mark.behaviour("RT-02", "GERR-01", "GERR-02")
def test_mapped_paths(way: Way, method: str, path: str) -> None:
    """Their errors tell that they are mapped: each names the provider."""
    way.upstream.at(
        f"{method} /v1{path} ", {"error": {"message": "No.", "type": "t", "param": "p", "code": "c"}}, "418 Teapot"
    )
    found = way.raw(method, path, b'{"model":"m"}' if method == "POST" else None)
    assert found.status == 418
    assert found.json == {
        "error": {"message": "openai error: No.", "type": "t", "param": "p", "code": "c"},
        "provider": "openai",
    }


@pytest.mark.behaviour("RT-03", "RT-04")
def test_models_of_a_provider(way: Way) -> None:
    way.upstream.at("GET /v1/models ", b'{"object":"list","data" :[]}')
    for asked in (way, way.config({})):
        found = asked.raw("GET", "/models")
        assert (found.status, found.body) == (200, b'{"object":"list","data" :[]}')


@pytest.mark.behaviour("RT-05")
def test_the_prefix_proxy_skips_validation(way: Way) -> None:
    way.upstream.say(b"fine", "200 OK", ("Content-Type", "text/plain"))
    found = way.raw("POST", "/proxy/odd", b"<a/>", content_type="application/xml")
    assert (found.status, found.body) == (200, b"fine")
    assert way.upstream.last.headers["content-type"] == "application/xml"


@pytest.mark.behaviour("RT-07")
@pytest.mark.parametrize("path", ["/nothing", "/v2/chat/completions", "/v1/nothing"])
def test_paths_of_nobody(gateway: Server, path: str) -> None:
    found = gateway.client().raw("GET", path, check=False)
    assert (found.status, found.json["error"]["message"]) == (404, f"Invalid URL (GET {path})")


@pytest.mark.behaviour("RT-09")
def test_pretty(way: Way) -> None:
    for _ in range(2):
        way.upstream.say(b'{"a":{"b":[1,2]},"\xc3\xa4":1.0}')
    for path in ("/chat/completions?pretty", "/proxy/x?pretty"):
        found = way.raw("POST", path, b'{"model":"m","messages":[]}')
        assert found.json == {"a": {"b": [1, 2]}, "ä": 1.0}
        assert b'\n  "a": {\n' in found.body
        assert found.headers["content-length"] == str(len(found.body))


def test_a_word_that_looks_like_pretty_is_no_wish(way: Way) -> None:
    way.upstream.say(b'{"a":1}')
    assert way.raw("GET", "/proxy/x?q=prettyman").body == b'{"a":1}'


def test_methods_that_an_endpoint_does_not_have(way: Way) -> None:
    for method in ("GET", "PUT", "DELETE"):
        found = way.raw(method, "/chat/completions")
        assert (found.status, found.headers["allow"]) == (405, "POST")


# --- 2: who, and where to ---------------------------------------------------------------------------------------------


@pytest.mark.behaviour("AUTH-01", "AUTH-10", "RH-01")
@pytest.mark.parametrize("key", ["", "sk-wrong-0123456789"])
def test_the_key_of_this_server_comes_first(way: Way, key: str) -> None:
    """Before any other mistake, whatever way is named."""
    sent = {**way.sent(), "x-portkey-api-key": key, "x-portkey-config": "{nonsense", "Content-Type": "text/odd"}
    if not key:
        del sent["Authorization"]
    found = Client(way.url, None, headers=sent).raw("POST", "/v1/chat/completions", b"{", check=False)
    assert found.status == 401
    assert found.json["error"]["message"]
    assert not way.upstream.asked
    assert not [name for name in found.headers if name.startswith("x-portkey")]


def _stored(gateway: Server, workspace: str, upstream: StandIn) -> str:
    made = gateway.store.virtual_keys.create(
        workspace, "team", "openai", "sk-stored-key-0123456789", upstream.url + "/v1"
    )
    assert gateway.run(made)
    return gateway.new_key(workspace)


@pytest.mark.parametrize(
    ("headers", "model"),
    [
        ({"x-portkey-provider": "@team"}, "m"),
        ({"x-portkey-virtual-key": "team"}, "m"),
        ({"x-portkey-config": '{"virtual_key":"team"}'}, "m"),
        ({"x-portkey-config": '{"provider":"@team"}'}, "m"),
        ({}, "@team/m"),
        ({"Authorization": "KEY"}, "@team/m"),
        ({"Authorization": "KEY", "x-portkey-api-key": ""}, "@team/m"),
        ({"Authorization": "KEY", "x-portkey-api-key": "", "x-portkey-config": '{"virtual_key":"team"}'}, "m"),
        ({"Authorization": "Bearer OPENAI_API_KEY", "x-portkey-provider": "@team"}, "m"),
    ],
)
@pytest.mark.behaviour("AUTH-02", "AUTH-03", "AUTH-07", "AUTH-08", "RH-02", "RH-03", "RH-04", "AUTH-11")
def test_ways_to_a_stored_key(gateway: Server, upstream: StandIn, headers: dict[str, str], model: str) -> None:
    key = _stored(gateway, f"stored-{upstream.url}", upstream)
    sent = {
        "x-portkey-api-key": key,
        **{name: value.replace("KEY", f"Bearer {key}") if value == "KEY" else value for name, value in headers.items()},
    }
    upstream.say(chat_answer())
    body = json.dumps({"model": model, "messages": []}).encode()
    found = Client(gateway.url, None, headers=sent).raw("POST", "/v1/chat/completions", body, check=False)
    assert found.status == 200, found.body
    assert upstream.last.headers["authorization"] == "Bearer sk-stored-key-0123456789"
    assert json.loads(upstream.last.body)["model"] == "m"
    assert key not in upstream.last.head.decode()


@pytest.mark.behaviour("AUTH-11")
def test_a_stored_key_is_not_replaced_on_proxied_paths(gateway: Server, upstream: StandIn) -> None:
    key = _stored(gateway, f"stored-{upstream.url}", upstream)
    headers = {"Authorization": f"Bearer {key}", "x-portkey-provider": "@team", "api-key": "x", "x-api-key": "y"}
    upstream.say(b"{}")
    Client(gateway.url, None, headers=headers).raw("GET", "/v1/vector_stores", check=False)
    assert upstream.last.headers["authorization"] == "Bearer sk-stored-key-0123456789"
    assert not {"api-key", "x-api-key"} & upstream.last.headers.keys()


@pytest.mark.behaviour("AUTH-02", "AUTH-06", "RH-06", "RH-05", "HOST-05")
def test_ones_own_key(way: Way) -> None:
    way.upstream.say(chat_answer())
    assert way.chat().status == 200
    assert way.upstream.last.headers["authorization"] == f"Bearer {OWN}"
    assert way.upstream.last.line == "POST /v1/chat/completions HTTP/1.1"


@pytest.mark.parametrize(
    ("provider", "base", "header", "value"),
    [
        ("anthropic", "/v1", "x-api-key", OWN),
        ("azure-openai", "/openai", "api-key", OWN),
        ("google", "", "x-goog-api-key", OWN),
        ("groq", "", "authorization", f"Bearer {OWN}"),
    ],
)
@pytest.mark.behaviour("AUTH-05")
def test_the_key_goes_where_the_vendor_wants_it(way: Way, provider: str, base: str, header: str, value: str) -> None:
    way.at(provider, base).named(azure_api_version="2024-10-21").chat()
    asked = way.upstream.last
    sent = asked.headers.get(header) or (asked.line.partition("key=")[2].partition(" ")[0].partition("&")[0])
    assert sent == value
    assert [name for name, found in asked.headers.items() if OWN in found] in ([header], [])


@pytest.mark.behaviour("AUTH-06")
def test_anthropics_own_header_for_the_key(way: Way) -> None:
    there = way.at("anthropic", "/v1")
    there.raw("POST", "/messages", b'{"model":"m","max_tokens":1,"messages":[]}', Authorization="", x_api_key=OWN)
    assert way.upstream.last.headers["x-api-key"] == OWN


@pytest.mark.behaviour("AUTH-08", "AUTH-09")
@pytest.mark.parametrize(
    "headers", [{"provider": "@nobody"}, {"provider": "@"}, {"virtual_key": "nobody", "provider": ""}]
)
def test_a_stored_key_that_nobody_has(way: Way, headers: dict[str, str]) -> None:
    found = way.named(**headers, custom_host="").chat()
    assert found.status == 400
    assert "nobody" in found.json["message"] or "@" in found.json["message"]


@pytest.mark.parametrize("named", [{"provider": "openai"}, {"virtual_key": "team", "provider": ""}])
def test_a_stored_key_never_goes_to_a_host_that_the_client_names(
    gateway: Server, upstream: StandIn, named: dict[str, str]
) -> None:
    way = Way(gateway.url, _stored(gateway, f"stored-{upstream.url}", upstream), upstream)
    found = way.named(**named).raw("POST", "/chat/completions", b'{"model":"m","messages":[]}', Authorization="")
    assert found.status in (400, 401)
    assert not upstream.asked


# --- 3: headers -------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("RH-07", "RSP-01", "RSP-08")
def test_the_trace_id_comes_back_or_is_made(way: Way) -> None:
    way.upstream.at("POST", chat_answer())
    assert way.named(trace_id="my trace/1").chat().headers["x-portkey-trace-id"] == "my trace/1"
    made = {way.chat().headers["x-portkey-trace-id"] for _ in range(2)}
    assert len(made) == 2
    assert "" not in made


@pytest.mark.parametrize(
    ("given", "hit"),
    [('{"user":"a"}', True), ('{"user":"b"}', False), ("{nonsense", None), ("[1]", None), ("", None)],
)
@pytest.mark.behaviour("RH-08", "CCH-01")
def test_metadata_parts_the_cache_and_nonsense_counts_as_none(way: Way, given: str, hit: bool | None) -> None:
    way.upstream.at("POST", chat_answer())
    first = way.config({"cache": {"mode": "simple"}})
    first.named(metadata='{"user":"a"}').chat()
    first.chat()
    found = first.named(metadata=given).chat()
    assert found.status == 200
    assert found.headers["x-portkey-cache-status"] == ("MISS" if hit is False else "HIT")


@pytest.mark.behaviour("RH-09", "CCH-07", "RSP-04")
def test_a_forced_refresh(way: Way) -> None:
    cached = way.config({"cache": {"mode": "simple"}})
    for text in ("one", "two"):
        way.upstream.say(chat_answer(text))
    seen: list[Any] = []
    for flag in ("", "false", "true", ""):
        found = cached.named(cache_force_refresh=flag).chat()
        seen.append((found.headers["x-portkey-cache-status"], found.json["choices"][0]["message"]["content"]))
    assert seen == [("MISS", "one"), ("HIT", "one"), ("REFRESH", "two"), ("HIT", "two")]


@pytest.mark.behaviour("RH-10")
def test_a_namespace_parts_the_cache_by_itself(way: Way) -> None:
    way.upstream.at("POST", chat_answer())
    cached = way.config({"cache": {"mode": "simple"}})
    seen = [
        cached.named(cache_namespace=space, metadata=metadata).chat().headers["x-portkey-cache-status"]
        for space, metadata in (("a", '{"u":"1"}'), ("b", '{"u":"1"}'), ("a", '{"u":"2"}'), ("", ""))
    ]
    assert seen == ["MISS", "MISS", "HIT", "MISS"]


@pytest.mark.behaviour("RH-12", "STR-01")
@pytest.mark.parametrize(
    ("given", "strict"), [("", True), ("true", True), ("FALSE", True), ("0", True), ("false", False)]
)
def test_only_the_text_false_ends_strictness(way: Way, given: str, strict: bool) -> None:
    config = way.config({"input_guardrails": [{"default.wordCount": {"minWords": 0, "maxWords": 99}}]})
    way.upstream.stream(b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n")
    found = config.named(strict_open_ai_compliance=given).chat(stream=True)
    assert (b"hook_results" in found.body) is not strict


@pytest.mark.behaviour("RH-13")
def test_forwarded_headers(way: Way) -> None:
    way.upstream.at("POST", chat_answer())
    body = b'{"model":"m","messages":[]}'
    way.config({"forward_headers": ["X-One"]}).raw("POST", "/chat/completions", body, X_One="1", X_Two="2")
    assert (way.upstream.last.headers.get("x-one"), way.upstream.last.headers.get("x-two")) == ("1", None)
    way.upstream.forget()
    way.upstream.at("POST", chat_answer())
    way.named(forward_headers="X-One, x-two,x-none").raw("POST", "/chat/completions", body, X_One="1", X_Two="2")
    assert (way.upstream.last.headers.get("x-one"), way.upstream.last.headers.get("x-two")) == ("1", "2")


@pytest.mark.behaviour("RH-15", "CCH-11")
def test_debug_switches_the_cache_off(way: Way) -> None:
    way.upstream.at("POST", chat_answer())
    quiet = way.config({"cache": {"mode": "simple"}}).named(debug="false")
    assert [quiet.chat().headers["x-portkey-cache-status"] for _ in range(2)] == ["DISABLED", "DISABLED"]


@pytest.mark.behaviour("RH-20")
def test_organization_and_project(way: Way) -> None:
    way.upstream.at("POST", chat_answer())
    way.named(openai_organization="org-1", openai_project="proj-1").chat()
    asked = way.upstream.last.headers
    assert (asked["openai-organization"], asked["openai-project"]) == ("org-1", "proj-1")


@pytest.mark.parametrize("prefix", ["", "x_portkey_"])
@pytest.mark.behaviour("RH-21")
def test_anthropics_headers(way: Way, prefix: str) -> None:
    there = way.at("anthropic", "/v1")
    given = {prefix + "anthropic_version": "2024-01-01", prefix + "anthropic_beta": "odd-1"}
    for path in ("/chat/completions", "/messages"):
        for headers, version, beta in ((given, "2024-01-01", "odd-1"), ({}, "2023-06-01", None)):
            way.upstream.forget()
            there.post(path, {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}, **headers)
            asked = way.upstream.last.headers
            assert (asked["anthropic-version"], asked.get("anthropic-beta")) == (version, beta)


@pytest.mark.behaviour("RH-22")
def test_headers_without_effect(way: Way) -> None:
    way.upstream.at("POST", chat_answer())
    assert way.named(mode="proxy", retry_count="5", cache="simple").chat().status == 200


@pytest.mark.behaviour("RH-25")
def test_names_of_headers_in_any_case(way: Way) -> None:
    way.upstream.at("POST", chat_answer())
    sent = {name.upper(): value for name, value in way.sent().items()}
    found = Client(way.url, None, headers=sent).raw(
        "POST", "/v1/chat/completions", b'{"model":"m","messages":[]}', check=False
    )
    assert found.status == 200
    assert not [name for name in way.upstream.last.headers if name.startswith("x-portkey")]


@pytest.mark.behaviour("RH-24")
@pytest.mark.parametrize("name", ["nitro-mode", "nonsense", "error-details"])
def test_headers_that_nobody_here_knows_are_refused_by_name(way: Way, name: str) -> None:
    found = way.named(**{name: "1"}).chat()
    assert (found.status, found.json["error"]["code"]) == (400, "unsupported_header")
    assert f"x-portkey-{name}" in found.json["message"]
