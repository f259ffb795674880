"""Saved configs with versions, and guardrails, over the admin routes; every answer is held against the description."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from loomgate.gateway.saved import Saved
from loomgate.settings import DeclaredConfig, DeclaredGuardrail, Tree
from tests.support import gateway_schema
from tests.support.server import Client, Server

SECRET = "sk-provider-0123456789abcdefghijkl1234"
CONFIG: dict[str, Any] = {"retry": {"attempts": 3}, "cache": {"mode": "simple", "max_age": 3600}}
CHECKS = [
    {"id": "default.contains", "parameters": {"words": ["x"], "operator": "none"}},
    {
        "id": "default.webhook",
        "parameters": {"webhookURL": "https://x.example/", "headers": {"Authorization": "Bearer of-some-length-1234"}},
        "name": "ask",
        "is_enabled": False,
    },
]
ACTIONS = {
    "deny": True,
    "async": False,
    "on_success": {"feedback": {"value": 5, "weight": 1, "metadata": ""}},
    "on_fail": {"feedback": {"value": -5, "weight": 2, "metadata": "m"}},
}


@pytest.fixture
def admin(server: Server) -> Client:
    return server.admin("configs-" + server.new_key()[-8:])


@pytest.fixture
def declaring(make_server: Callable[..., Server]) -> Server:
    return make_server(
        configs={
            "steady": DeclaredConfig(slug="steady", config=Tree(CONFIG), workspace="acme", default=True),
            "other": DeclaredConfig(slug="other", config=Tree(CONFIG), workspace="else"),
        },
        guardrails={
            "polite": DeclaredGuardrail(
                slug="polite", guardrail=Tree({"checks": CHECKS, "deny": True}), workspace="acme"
            )
        },
    )


def saved(server: Server) -> Saved:
    return Saved(server.store, server.settings)


def workspace_of(client: Client) -> str:
    return client.raw("GET", "/v1/configs").headers["openai-organization"]


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("AUTH-02", "RH-04")
def test_a_configs_life(server: Server, admin: Client) -> None:
    workspace = workspace_of(admin)
    body = {"name": "Pplx Cache Test", "config": CONFIG, "workspace_id": "", "isDefault": 0}
    gateway_schema.check_request("POST", "/v1/configs", {**body, "workspace_id": admin.get("/configs")["object"]} | {
        "workspace_id": "4e54a1a4-109c-43ee-b0f7-11e7d60b0066"})  # fmt: skip
    made = admin.post("/configs", body)
    slug = made["slug"]
    assert slug.startswith("pc-pplx-c-")
    assert made["data"]["version_id"] == made["version_id"]
    shown = admin.get(f"/configs/{slug}")
    assert shown["data"]["config"] == shown["config"] == CONFIG
    assert shown["id"] == made["id"]
    (row,) = admin.get("/configs")["data"]
    assert (row["slug"], row["name"], row["is_default"], row["status"]) == (slug, "Pplx Cache Test", 0, "active")
    found = server.run(saved(server).config(workspace, slug))
    assert found is not None
    assert (found.body, found.version_id) == (CONFIG, made["version_id"])

    changed = {**CONFIG, "retry": {"attempts": 5}}
    second = admin.put(f"/configs/{slug}", {"slug": slug, "config": changed})
    third = admin.put(f"/configs/{slug}", {"name": "renamed", "is_default": 1})
    assert len({made["version_id"], second["version_id"], third["version_id"]}) == 3
    versions = admin.get(f"/configs/{slug}/versions")
    assert versions["total"] == 3
    rows = versions["data"]
    assert [row["version_id"] for row in rows] == [third["version_id"], second["version_id"], made["version_id"]]
    assert [row["name"] for row in rows] == ["renamed", "Pplx Cache Test", "Pplx Cache Test"]
    assert [json.loads(row["config"]) for row in rows] == [changed, changed, CONFIG]
    default = server.run(saved(server).default_config(workspace))
    assert default is not None
    assert default.slug == slug

    admin.put(f"/configs/{slug}", {"status": "archived"})
    assert server.run(saved(server).config(workspace, slug)) is None
    assert server.run(saved(server).default_config(workspace)) is None
    assert admin.get(f"/configs/{slug}")["status"] == "archived"
    assert admin.delete(f"/configs/{slug}") == {}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/versions")):
        assert admin.raw(method, f"/v1/configs/{slug}{path}").status == 404
    admin.put(f"/configs/{slug}", {"name": "x"}, status=404)


def test_there_is_one_default(admin: Client) -> None:
    for name in ("one", "two"):
        admin.post("/configs", {"name": name, "config": CONFIG, "isDefault": 1})
    assert {row["name"]: row["is_default"] for row in admin.get("/configs")["data"]} == {"one": 0, "two": 1}


def test_secrets_of_a_config_are_masked_and_survive_the_way_back(server: Server, admin: Client) -> None:
    config = {
        "strategy": {"mode": "fallback"},
        "targets": [{"provider": "openai", "api_key": SECRET}, {"provider": "groq", "api_key": "gsk_short"}],
    }
    slug = admin.post("/configs", {"name": "x", "config": config})["slug"]
    shown = admin.get(f"/configs/{slug}")["config"]
    assert [target["api_key"] for target in shown["targets"]] == ["sk-…1234", "***"]
    shown["retry"] = {"attempts": 2}
    admin.put(f"/configs/{slug}", {"config": shown})
    found = server.run(saved(server).config(workspace_of(admin), slug))
    assert found is not None
    assert found.body == {**config, "retry": {"attempts": 2}}
    # At another place a mask stands for nothing.
    shown["targets"].reverse()
    refused = admin.put(f"/configs/{slug}", {"config": shown}, status=400)
    assert refused["param"] == "config.targets[0].api_key"
    assert "mask" in refused["message"]


def test_another_workspace_sees_no_config(server: Server, admin: Client) -> None:
    slug = admin.post("/configs", {"name": "x", "config": CONFIG, "slug": "shared"})["slug"]
    other = server.admin()
    assert other.get("/configs")["total"] == 0
    other.get(f"/configs/{slug}", status=404)
    other.put(f"/configs/{slug}", {"name": "mine"}, status=404)
    other.delete(f"/configs/{slug}", status=404)
    other.post("/configs", {"name": "x", "config": CONFIG, "slug": "shared"})
    refused = admin.post("/configs", {"name": "x", "config": CONFIG, "slug": "shared"}, status=400)
    assert (refused["param"], refused["code"]) == ("slug", "slug_taken")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"config": CONFIG}, "name"),
        ({"name": "x"}, "config"),
        ({"name": "x", "config": CONFIG, "colour": 1}, "colour"),
        ({"name": "x", "config": CONFIG, "slug": "a b"}, "slug"),
        ({"name": "x", "config": CONFIG, "isDefault": 2}, "isDefault"),
        ({"name": "x", "config": CONFIG, "workspace_id": "other"}, "workspace_id"),
        ({"name": "x", "config": {"retry": {}}}, "config"),
        ({"name": "x", "config": {"retrys": {"attempts": 1}}}, "config"),
    ],
)
def test_a_config_is_refused_by_the_name_of_what_is_wrong(admin: Client, body: dict[str, Any], param: str) -> None:
    assert admin.post("/configs", body, status=400)["param"] == param
    assert admin.get("/configs")["total"] == 0


def test_a_config_must_not_name_what_does_not_exist(server: Server, admin: Client) -> None:
    def refused(config: dict[str, Any]) -> dict[str, Any]:
        return admin.post("/configs", {"name": "x", "config": config}, status=400)

    def fallback(*targets: dict[str, Any]) -> dict[str, Any]:
        return {"strategy": {"mode": "fallback"}, "targets": list(targets)}

    good = {"provider": "openai", "api_key": "k"}
    for target, place in (
        ({"virtual_key": "nope"}, "virtual_key"),
        ({"provider": "@nope"}, "provider"),
        ({"provider": "nope", "api_key": "k"}, "provider"),
        ({**good, "input_guardrails": ["nope"]}, "input_guardrails[0]"),
    ):
        error = refused(fallback(good, fallback(good, target)))
        assert (error["param"], error["code"]) == (f"config.targets[1].targets[1].{place}", "invalid_config")
        assert "'@nope'" in error["message"] or "'nope'" in error["message"]
    # Another workspace's does not exist either.
    server.run(server.store.virtual_keys.create("somebody-else", "theirs", "openai", "k"))
    assert refused({"virtual_key": "theirs"})["param"] == "config.virtual_key"
    server.run(server.store.virtual_keys.create(workspace_of(admin), "ours", "openai", "k"))
    guardrail = admin.post("/guardrails", {"name": "g", "checks": CHECKS, "actions": ACTIONS})["slug"]
    for config in ({"virtual_key": "ours"}, {"provider": "@ours"}, {**good, "input_guardrails": [guardrail]}):
        admin.post("/configs", {"name": "x", "config": config})


def test_what_the_file_declares_is_read_only(declaring: Server) -> None:
    admin = declaring.admin("acme")
    (row,) = admin.get("/configs")["data"]
    assert (row["slug"], row["is_default"], row["read_only"]) == ("steady", 1, True)
    assert admin.get("/configs/steady")["config"] == CONFIG
    assert admin.get(f"/configs/{row['id']}")["slug"] == "steady"
    assert admin.get("/configs/steady/versions")["total"] == 1
    for refused in (
        admin.put("/configs/steady", {"name": "x"}, status=400),
        admin.delete("/configs/steady", status=400),
        admin.put("/guardrails/polite", {"name": "x"}, status=400),
        admin.delete("/guardrails/polite", status=400),
    ):
        assert refused["code"] == "declared_in_file"
        assert "loomgate.toml" in refused["message"]
    for kind, body in (("configs", {"config": CONFIG}), ("guardrails", {"checks": CHECKS, "actions": ACTIONS})):
        slug = {"configs": "steady", "guardrails": "polite"}[kind]
        assert admin.post(f"/{kind}", {"name": "x", "slug": slug, **body}, status=400)["code"] == "slug_taken"
    assert admin.get("/guardrails")["total"] == 1
    assert [check["id"] for check in admin.get("/guardrails/polite")["checks"]] == [check["id"] for check in CHECKS]
    default = declaring.run(saved(declaring).default_config("acme"))
    assert default is not None
    assert default.slug == "steady"
    assert declaring.run(saved(declaring).config("acme", "other")) is None
    assert declaring.admin("else").get("/configs")["data"][0]["slug"] == "other"


def test_caches_notice_a_change(server: Server, admin: Client) -> None:
    workspace = workspace_of(admin)

    def generation() -> int:
        return server.run(server.store.generations.of(workspace))

    seen = [generation()]
    slug = admin.post("/configs", {"name": "x", "config": CONFIG})["slug"]
    seen.append(generation())
    admin.put(f"/configs/{slug}", {"name": "y"})
    seen.append(generation())
    admin.delete(f"/configs/{slug}")
    seen.append(generation())
    key = admin.post("/virtual-keys", {"name": "x", "provider": "openai", "key": SECRET})["slug"]
    seen.append(generation())
    admin.put(f"/providers/{key}", {"note": "n"})
    seen.append(generation())
    admin.delete(f"/providers/{key}")
    seen.append(generation())
    assert seen == sorted(set(seen)), "each change moves the number on, at once"
    admin.get("/configs")
    assert generation() == seen[-1]


# --- guardrails ------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("GR-03", "GR-04")
def test_a_guardrails_life(server: Server, admin: Client) -> None:
    workspace = workspace_of(admin)
    body = {"name": "Content Check", "checks": CHECKS, "actions": ACTIONS}
    gateway_schema.check_request("POST", "/v1/guardrails", body)
    made = admin.post("/guardrails", body)
    slug = made["slug"]
    assert slug.startswith("guard_content-check-")
    shown = admin.get(f"/guardrails/{slug}")
    assert shown["checks"][1]["parameters"]["headers"] == {"Authorization": "Bea…1234"}
    assert shown["checks"][0] == {**CHECKS[0], "is_enabled": True}
    assert shown["actions"] == ACTIONS
    assert admin.get(f"/guardrails/{made['id']}") == shown
    (row,) = admin.get("/guardrails?page_size=1")["data"]
    assert row["slug"] == slug

    changed = admin.put(f"/guardrails/{slug}", {"checks": shown["checks"], "actions": {**ACTIONS, "deny": False}})
    assert changed["version_id"] != made["version_id"]
    found = server.run(saved(server).guardrail(workspace, slug))
    assert found is not None
    assert not found.body.get("deny")
    assert found.body["checks"][1]["parameters"] == CHECKS[1]["parameters"], "masks came back as what they mask"
    assert [check.get("name") for check in found.body["checks"]] == [None, None]
    assert admin.get(f"/guardrails/{slug}")["checks"][1]["name"] == "ask"
    assert server.run(saved(server).guardrails(workspace)) == {slug: found.body}
    assert admin.delete(f"/guardrails/{slug}") == {}
    admin.get(f"/guardrails/{slug}", status=404)
    admin.put(f"/guardrails/{slug}", {"name": "x"}, status=404)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": None}, "name"),
        ({"checks": []}, "checks"),
        ({"checks": [{"parameters": {}}]}, "checks[0].id"),
        ({"checks": [{"id": "default.contains", "x": 1}]}, "checks[0].x"),
        ({"actions": {"deny": "yes"}}, "actions.deny"),
        ({"actions": {"on_fail": {"feedback": {"value": "bad"}}}}, "actions.on_fail.feedback.value"),
        ({"organisation_id": "x"}, "organisation_id"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_guardrail_is_refused_by_the_name_of_what_is_wrong(admin: Client, change: dict[str, Any], param: str) -> None:
    body = {"name": "x", "checks": CHECKS, "actions": ACTIONS} | change
    assert admin.post("/guardrails", body, status=400)["param"] == param
    assert admin.get("/guardrails")["total"] == 0
