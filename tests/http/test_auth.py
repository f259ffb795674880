"""Keys, workspaces, Portkey's headers, and the server that has no key yet (BEHAVIOUR ERR-10, -11; GATEWAY AUTH)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from loomgate import clock
from loomgate.http import auth
from loomgate.settings import Provider, Secret, VirtualKey
from loomgate.wire.chat import Upstream
from tests.support.server import Client, Server

_WRONG = "sk-wrong-0123456789abcdwxyz"


def _spec(server: Server, run_id: str) -> Any:
    return server.run(server.store.runs.spec(run_id))


@pytest.mark.behaviour("ERR-10", "ERR-11", "HDR-06", "HDR-08")
def test_keys(server: Server, client: Client) -> None:
    nobody = Client(server.url)
    for header in ("", "Bearer ", "Bearer", "Basic dXNlcjpwYXNz", client.key or ""):
        refused = nobody.raw("GET", "/v1/assistants", headers={"Authorization": header})
        assert refused.status == 401
        assert refused.error["message"].startswith("You didn't provide an API key.")
        assert refused.headers["www-authenticate"] == "Bearer"
    wrong = nobody.raw("GET", "/v1/assistants", headers={"Authorization": f"Bearer {_WRONG}"})
    assert (wrong.status, wrong.error["code"], wrong.error["param"]) == (401, "invalid_api_key", None)
    assert wrong.error["message"].startswith("Incorrect API key provided: sk-…wxyz.")
    assert _WRONG not in wrong.body.decode()
    for header in (f"bearer {client.key}", f"Bearer   {client.key} "):
        assert nobody.raw("GET", "/v1/assistants", headers={"Authorization": header}).status == 200


@pytest.mark.parametrize(("key", "shown"), [("short", "***"), ("sk-0123456789abcdef", "sk-…cdef")])
def test_masking(key: str, shown: str) -> None:
    assert auth.masked(key) == shown


def test_a_new_key_counts_at_once_and_a_revoked_one_soon_no_more(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = server.run(server.store.keys.create(workspace="revoked", name="x"))
    client = Client(server.url, made.secret)
    client.get("/assistants")
    assert server.run(server.store.keys.revoke(made.id))
    with monkeypatch.context() as patch:
        later = clock.monotonic() + 2.1
        patch.setattr(clock, "monotonic", lambda: later)
        assert client.get("/assistants", status=401)["code"] == "invalid_api_key"
    # What was found wrong is not remembered as right.
    assert client.get("/assistants", status=401)["code"] == "invalid_api_key"


def test_two_keys_of_one_workspace_see_the_same(server: Server) -> None:
    one, two = server.client("shared"), server.client("shared")
    assert one.key != two.key
    assert two.get("/assistants/" + one.assistant()["id"])["object"] == "assistant"


# --- Portkey ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def portkey(make_server: Callable[..., Server]) -> Server:
    return make_server(
        providers={
            "openai": Provider(name="openai", vendor="openai", api_key=Secret("sk-operator"), default=True),
            "house": Provider(name="house", vendor="openai-compatible", base_url="http://127.0.0.1:9/v1"),
        },
        virtual_keys={
            "team": VirtualKey(slug="team", provider="openai", api_key=Secret("sk-team"), workspace="acme"),
            "other": VirtualKey(slug="other", provider="openai", api_key=Secret("sk-other"), workspace="else"),
        },
    )


def _run(server: Server, headers: dict[str, str]) -> Any:
    """What a run created with these headers keeps of them."""
    client = Client(server.url)
    made = client.post("/assistants", {"model": "scripted", "instructions": "Hi."}, headers=headers)
    run = client.post("/threads/runs", {"assistant_id": made["id"]}, headers=headers)
    return _spec(server, run["id"]).upstream


def test_portkeys_ways_to_name_a_provider(portkey: Server) -> None:
    key = portkey.new_key("acme")
    own = {"x-portkey-api-key": key}
    portkey.run(portkey.store.virtual_keys.create("acme", "stored", "openai", "sk-stored"))
    assert _run(portkey, own) == Upstream()
    assert _run(portkey, {"Authorization": f"Bearer {key}", "x-portkey-virtual-key": "team"}) == Upstream(
        "virtual_key", "team"
    )
    for slug in ("team", "stored"):
        expected = Upstream("virtual_key", slug)
        assert _run(portkey, {**own, "x-portkey-virtual-key": slug}) == expected
        assert _run(portkey, {**own, "x-portkey-provider": "@" + slug}) == Upstream("provider", "@" + slug)
        # The provider's key is stored: a bearer token besides is not one.
        assert _run(portkey, {**own, "Authorization": "Bearer x", "x-portkey-virtual-key": slug}) == expected
    for name in ("house", "@house"):
        assert _run(portkey, {**own, "x-portkey-provider": name}) == Upstream("provider", name)
    for bearer in (key, "OPENAI_API_KEY"):  # as Portkey's npm and Python clients send it
        headers = {**own, "Authorization": f"Bearer {bearer}", "x-portkey-provider": "openai"}
        assert _run(portkey, headers) == Upstream("provider", "openai")


def test_a_clients_own_provider_key_is_sealed_with_its_runs(portkey: Server) -> None:
    headers = {
        "x-portkey-api-key": portkey.new_key("acme"),
        "x-portkey-provider": "groq",
        "Authorization": "Bearer gsk-mine",
    }
    first, second = _run(portkey, headers), _run(portkey, headers)
    assert (first.kind, first.name) == ("sealed", "groq")
    assert first.credential == second.credential
    sealed = portkey.run(portkey.store.credentials.get("acme", first.credential))
    assert json.loads(sealed) == {"provider": "groq", "api_key": "gsk-mine"}
    assert portkey.run(portkey.store.credentials.get("else", first.credential)) is None
    for file in portkey.settings.data.iterdir():
        assert b"gsk-mine" not in file.read_bytes()


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"x-portkey-virtual-key": "nope"}, "x-portkey-virtual-key"),
        ({"x-portkey-virtual-key": "other"}, "x-portkey-virtual-key"),  # of another workspace
        ({"x-portkey-provider": "nope"}, "x-portkey-provider"),
        ({"x-portkey-provider": "@nope"}, "x-portkey-provider"),
        ({"x-portkey-provider": "groq"}, "x-portkey-provider"),  # a vendor, but with nobody's key
        ({"x-portkey-provider": "nope", "Authorization": "Bearer k"}, "x-portkey-provider"),
        ({"x-portkey-provider": "openai-compatible", "Authorization": "Bearer k"}, "x-portkey-provider"),
        ({"x-portkey-provider": "openai", "x-portkey-virtual-key": "team"}, "x-portkey-virtual-key"),
        ({"x-portkey-config": "pc-123"}, "x-portkey-config"),
        ({"x-portkey-config": '{"retry": {}}'}, "x-portkey-config"),
        ({"x-portkey-config": '{"provider": "openai", "input_guardrails": ["nope"]}'}, "x-portkey-config"),
        ({"x-portkey-config": '{"provider": "openai", "custom_host": "http://10.0.0.1"}'}, "x-portkey-config"),
        ({"x-portkey-custom-host": "http://169.254.169.254"}, "x-portkey-custom-host"),
        ({"x-portkey-custom-host": "http://10.0.0.1", "x-portkey-provider": "openai"}, "x-portkey-custom-host"),
        ({"x-portkey-custom-host": "http://127.0.0.1", "x-portkey-virtual-key": "team"}, "x-portkey-custom-host"),
        ({"x-portkey-forward-headers": "x-portkey-forward-headers"}, "x-portkey-forward-headers"),
        ({"x-portkey-azure-resource-name": "../r"}, "x-portkey-azure-resource-name"),
        ({"x-portkey-aws-region": "eu.evil.test/"}, "x-portkey-aws-region"),
        ({"x-portkey-default-input-guardrails": "nope"}, "x-portkey-default-input-guardrails"),
        ({"x-portkey-nonsense": "1"}, "x-portkey-nonsense"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(portkey: Server, headers: dict[str, str], named: str) -> None:
    own = {"x-portkey-api-key": portkey.new_key("acme")}
    response = Client(portkey.url).raw("GET", "/v1/assistants", headers={**own, **headers})
    assert response.status == 400
    assert named in response.error["message"]


def test_a_wrong_portkey_key_is_refused_first(portkey: Server) -> None:
    portkey.new_key()
    headers = {"x-portkey-api-key": _WRONG, "x-portkey-config": "pc-123"}
    assert Client(portkey.url).raw("GET", "/v1/assistants", headers=headers).status == 401


@pytest.mark.behaviour("RUN-16")
def test_a_provider_in_the_models_name(portkey: Server) -> None:
    client = portkey.client()
    body = {"assistant_id": client.assistant(instructions="Hi.")["id"], "model": "@team/gpt-4o"}
    error = client.post("/threads/runs", body, status=400)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'@team'" in error["message"]
    body["assistant_id"] = (client := portkey.client("acme")).assistant(instructions="Hi.")["id"]
    assert client.post("/threads/runs", body)["model"] == "@team/gpt-4o"


# --- no key yet ------------------------------------------------------------------------------------------------------


def test_without_keys_this_machine_is_let_in(keyless: Server) -> None:
    port = keyless.url.rpartition(":")[2]
    for key in (None, "sk-anything"):
        client = Client(keyless.url, key)
        assert client.raw("GET", "/v1/assistants").headers["openai-organization"] == "default"
        for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST", "app.localhost"):
            assert client.raw("GET", "/v1/assistants", headers={"Host": host}).status == 200
        for origin in ("http://localhost:3000", "http://127.0.0.1"):
            assert client.raw("GET", "/v1/assistants", headers={"Origin": origin}).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.com"},
        {"Host": "localhost.example.com"},
        {"Host": "127.0.0.1.example.com"},
        {"Host": "[bad"},
        {"Host": "0.0.0.0"},  # noqa: S104
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": "http://localhost.example.com"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_without_keys_others_are_told_how_to_make_one(keyless: Server, headers: dict[str, str]) -> None:
    response = Client(keyless.url, "sk-anything").raw("GET", "/v1/assistants", headers=headers)
    assert (response.status, response.error["code"]) == (403, "api_key_required")
    assert "loomgate keys create" in response.error["message"]


def test_without_keys_a_body_has_to_say_that_it_is_json(keyless: Server) -> None:
    client = Client(keyless.url)
    for given in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused = client.raw("POST", "/v1/threads", b"{}", {"Content-Type": given})
        assert refused.status == 400
        assert "Content-Type" in refused.error["message"]
    for given in ("application/json", "application/json; charset=utf-8", "Application/JSON"):
        assert client.raw("POST", "/v1/threads", b"{}", {"Content-Type": given}).status == 200
    assert client.raw("POST", "/v1/threads", None, {"Content-Type": "text/plain"}).status == 200


def test_with_keys_the_content_type_does_not_matter(client: Client) -> None:
    for given in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert client.raw("POST", "/v1/threads", b"{}", {"Content-Type": given}).status == 200


def test_without_keys_a_bearer_token_beside_a_provider_is_the_providers(make_server: Callable[..., Server]) -> None:
    server = make_server()
    upstream = _run(server, {"x-portkey-provider": "groq", "Authorization": "Bearer gsk-mine"})
    assert (upstream.kind, upstream.name) == ("sealed", "groq")
    sealed = server.run(server.store.credentials.get("default", upstream.credential))
    assert json.loads(sealed) == {"provider": "groq", "api_key": "gsk-mine"}


def test_the_first_key_closes_the_door(make_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_EXIST_SECONDS", 0.0)
    server = make_server()
    assistant = Client(server.url).assistant()["id"]
    key = server.new_key("default")
    assert Client(server.url).get("/assistants", status=401)["code"] is None
    assert Client(server.url, key).get("/assistants/" + assistant)["id"] == assistant


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("localhost", True),
     ("10.0.0.1", False), ("::", False), ("", False), ("localhost.evil.com", False)],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert auth.is_loopback(host) is expected
