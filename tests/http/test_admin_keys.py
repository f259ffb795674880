"""Virtual keys and providers over the admin routes; every answer is held against Portkey's description."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loomgate.gateway.saved import Saved
from loomgate.settings import Provider, Secret, Tree, VirtualKey
from loomgate.store.accounts import Opened
from loomgate.wire.limits import KeyLimits, RateLimit, UsageLimits
from tests.support import gateway_schema
from tests.support.server import Client, Server

SECRET = "sk-provider-0123456789abcdefghijkl1234"
AWS = "aws-secret-0123456789abcdefghijkl"


@pytest.fixture
def admin(server: Server) -> Client:
    return server.admin()


@pytest.fixture
def declaring(make_server: Callable[..., Server]) -> Server:
    return make_server(
        providers={
            "house": Provider(
                name="house",
                vendor="openai",
                api_key=Secret("sk-operators-own-0123456789"),
                options=Tree({"openai_organization": "org-house"}),
            )
        },
        virtual_keys={
            "team": VirtualKey(slug="team", provider="openai", api_key=Secret(SECRET), workspace="acme"),
            "lent": VirtualKey(slug="lent", provider="house", workspace="acme"),
            "other": VirtualKey(slug="other", provider="openai", api_key=Secret("sk-x"), workspace="else"),
        },
    )


def opened(server: Server, workspace: str, slug: str) -> Opened | None:
    """The key as the gateway gets it."""
    return server.run(Saved(server.store, server.settings).virtual_key(workspace, slug))


def workspace_of(client: Client) -> str:
    return client.raw("GET", "/v1/configs").headers["openai-organization"]


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("AUTH-01", "AUTH-10")
@pytest.mark.parametrize("path", ["virtual-keys", "providers", "integrations", "configs", "guardrails"])
def test_admin_routes_are_for_admin_keys(server: Server, path: str) -> None:
    nobody = Client(server.url, headers={}).raw("GET", f"/v1/{path}")
    assert nobody.status == 401
    user = server.client().raw("GET", f"/v1/{path}")
    assert (user.status, user.error["code"]) == (403, "admin_key_required")
    assert "--role admin" in user.error["message"]
    by_header = Client(server.url, headers={"x-portkey-api-key": server.new_key(role="admin")})
    assert by_header.get(f"/{path}")["data"] == []
    # What names an upstream is of no concern here, and does not matter.
    assert by_header.get(f"/{path}", headers={"x-portkey-virtual-key": "nope"})["data"] == []


def test_without_keys_this_machine_may_administer(make_server: Callable[..., Server]) -> None:
    made = make_server()
    nobody = Client(made.url, headers={})
    slug = nobody.post("/virtual-keys", {"name": "x", "provider": "openai", "key": SECRET})["data"]["slug"]
    assert nobody.get("/virtual-keys")["data"][0]["slug"] == slug
    assert nobody.raw("GET", "/v1/configs", headers={"Origin": "https://example.com"}).status == 403


def test_the_admin_routes_are_below_v1_only(server: Server, admin: Client) -> None:
    for prefix in ("/openai", "/openai/v1"):
        assert admin.raw("GET", f"{prefix}/configs?api-version=1").status == 404
    assert admin.raw("POST", "/v1/configs/x", b"{}").status == 405


# --- virtual keys ----------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("AUTH-02", "AUTH-08", "RH-03")
def test_a_virtual_keys_life(server: Server, admin: Client) -> None:
    workspace = workspace_of(admin)
    limits = {"type": "cost", "credit_limit": 10, "periodic_reset": "monthly", "alert_threshold": 9}
    body = {
        "name": "My first Key!",
        "provider": "openai",
        "key": SECRET,
        "note": "for tests",
        "usage_limits": limits,
        "rate_limits": [{"type": "requests", "unit": "rpm", "value": 696}],
        "workspace_id": "",
    }
    made = admin.post("/virtual-keys", body)
    slug = made["data"]["slug"]
    assert slug.startswith("my-first-key-")
    assert made["slug"] == slug
    shown = admin.get(f"/virtual-keys/{slug}")
    assert shown["masked_key"] == "sk-…1234"
    assert (shown["name"], shown["note"], shown["status"]) == ("My first Key!", "for tests", "active")
    assert (shown["usage_limits"], shown["rate_limits"]) == (limits, body["rate_limits"])
    assert admin.get(f"/virtual-keys/{shown['id']}") == shown
    assert admin.get(f"/providers/{slug}")["object"] == "provider"
    found = opened(server, workspace, slug)
    assert found is not None
    assert (found.provider, found.secret, found.trusted) == ("openai", SECRET, False)
    (budget,) = found.budgets
    assert budget.id == f"{workspace}/{slug}"
    assert budget.limits == KeyLimits(
        usage_limits=UsageLimits(credit_limit=10, periodic_reset="monthly", alert_threshold=9),
        rate_limits=(RateLimit(type="requests", unit="rpm", value=696),),
    )

    admin.put(f"/virtual-keys/{slug}", {"slug": slug, "name": "second", "key": "sk-new-0123456789", "note": None})
    found = opened(server, workspace, slug)
    assert found is not None
    assert found.secret == "sk-new-0123456789"
    after = admin.get(f"/virtual-keys/{slug}")
    assert (after["name"], after["note"], after["usage_limits"]) == ("second", None, limits)
    # What was read can be sent back: a mask is the secret that it masks.
    admin.put(f"/virtual-keys/{slug}", {"key": after["masked_key"], "usage_limits": None, "rate_limits": None})
    found = opened(server, workspace, slug)
    assert found is not None
    assert (found.secret, found.budgets) == ("sk-new-0123456789", ())

    assert admin.delete(f"/virtual-keys/{slug}") == {}
    assert opened(server, workspace, slug) is None
    for method in ("GET", "DELETE"):
        assert admin.raw(method, f"/v1/virtual-keys/{slug}").status == 404
    assert admin.put(f"/virtual-keys/{slug}", {"name": "x"}, status=404)["code"] == "not_found"


def test_another_workspace_sees_nothing(server: Server, admin: Client) -> None:
    slug = admin.post("/virtual-keys", {"name": "x", "provider": "openai", "key": SECRET})["slug"]
    other = server.admin()
    assert other.get("/virtual-keys")["total"] == 0
    for path in (f"/virtual-keys/{slug}", f"/providers/{slug}"):
        other.get(path, status=404)
        other.put(path, {"name": "mine"}, status=404)
        other.delete(path, status=404)
    assert admin.get(f"/virtual-keys/{slug}")["name"] == "x"
    named = other.post("/virtual-keys", {"name": "x", "provider": "openai", "key": SECRET,
                                         "workspace_id": workspace_of(admin)}, status=400)  # fmt: skip
    assert named["param"] == "workspace_id"
    own = admin.get(f"/virtual-keys/{slug}")["workspace_id"]
    for word in (own, workspace_of(admin)):
        admin.post("/virtual-keys", {"name": "y", "provider": "openai", "key": SECRET, "workspace_id": word})
        assert admin.get(f"/virtual-keys?workspace_id={word}")["total"] >= 2
    assert admin.get("/providers?workspace_id=nope", status=400)["param"] == "workspace_id"


def test_provider_data_in_every_spelling(server: Server, admin: Client) -> None:
    workspace = workspace_of(admin)
    body: dict[str, Any] = {
        "provider": "bedrock",
        "name": "Bedrock Key",
        "awsAccessKeyId": "AKIA0123456789ABCDEF",
        "awsSecretAccessKey": AWS,
        "awsRegion": "eu-west-1",
    }
    gateway_schema.check_request("POST", "/v1/virtual-keys", body)
    slug = admin.post("/virtual-keys", body)["slug"]
    shown = admin.get(f"/virtual-keys/{slug}")["model_config"]
    assert shown == {"awsAccessKeyId": "AKI…CDEF", "awsSecretAccessKey": "aws…ijkl", "awsRegion": "eu-west-1"}
    found = opened(server, workspace, slug)
    assert found is not None
    assert found.options == {
        "aws_access_key_id": "AKIA0123456789ABCDEF",
        "aws_secret_access_key": AWS,
        "aws_region": "eu-west-1",
    }
    # One value changed, the masks sent back as they came.
    admin.put(f"/virtual-keys/{slug}", {**shown, "awsRegion": "eu-north-1"})
    found = opened(server, workspace, slug)
    assert found is not None
    assert (found.options["aws_region"], found.options["aws_secret_access_key"]) == ("eu-north-1", AWS)
    refused = admin.put(f"/virtual-keys/{slug}", {"awsSecretAccessKey": "sk-…9999"}, status=400)
    assert refused["param"] == "awsSecretAccessKey"
    assert "mask" in refused["message"]
    deployments = [{"apiVersion": "2024-06-01", "alias": "big", "deploymentName": "gpt", "is_default": True}]
    body = {"name": "Azure", "provider": "openai", "key": SECRET, "resourceName": "r", "deploymentConfig": deployments}
    gateway_schema.check_request("POST", "/v1/virtual-keys", body)
    found = opened(server, workspace, admin.post("/virtual-keys", body)["slug"])
    assert found is not None
    assert found.options == {
        "resource_name": "r",
        "deployments": [{"deployment_id": "gpt", "api_version": "2024-06-01", "alias": "big", "is_default": True}],
    }


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"provider": "nope"}, "provider"),
        ({"key": None}, "key"),
        ({"key": "sk-…1234"}, "key"),
        ({"key": 1}, "key"),
        ({"usage_limits": {"credit_limit": 0}}, "usage_limits.credit_limit"),
        ({"usage_limits": {"alert_threshold": 5}}, "usage_limits.credit_limit"),
        ({"usage_limits": {"credit_limit": 5, "typ": "cost"}}, "usage_limits.typ"),
        (
            {"usage_limits": {"credit_limit": 5, "periodic_reset": "weekly", "periodic_reset_days": 3}},
            "usage_limits.periodic_reset_days",
        ),
        ({"usage_limits": {"credit_limit": 5, "next_usage_reset_at": "soon"}}, "usage_limits.next_usage_reset_at"),
        ({"rate_limits": [{"type": "requests", "unit": "rps", "value": 1}]}, "rate_limits[0].unit"),
        ({"rate_limits": [{"type": "requests", "unit": "rpm"}]}, "rate_limits[0].value"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"secret_mappings": [{"target_field": "key", "secret_reference_id": "x"}]}, "secret_mappings"),
        ({"deploymentConfig": [{"apiVersion": "1"}]}, "deploymentConfig[0].deployment_id"),
        ({"deploymentConfig": []}, "deploymentConfig"),
        ({"deploymentConfig": [{"apiVersion": "1", "deploymentName": "d", "x": 1}]}, "deploymentConfig[0].x"),
        ({"resourceName": 5}, "resourceName"),
        ({"customHost": "ftp://x"}, "customHost"),
        ({"customHeaders": {"a b": "x"}}, "customHeaders.a b"),
        ({"customHeaders": {"a": "x\ny"}}, "customHeaders.a"),
    ],
)
def test_a_virtual_key_is_refused_by_the_name_of_what_is_wrong(
    admin: Client, change: dict[str, Any], param: str
) -> None:
    body = {"name": "x", "provider": "openai", "key": SECRET} | change
    refused = admin.post("/virtual-keys", body, status=400)
    assert refused["param"] == param, refused
    assert SECRET not in str(refused)
    assert admin.get("/virtual-keys")["total"] == 0


def test_pages(admin: Client) -> None:
    for at in range(5):
        admin.post("/virtual-keys", {"name": f"n{at}", "provider": "openai", "key": SECRET})
    whole = admin.get("/virtual-keys")
    assert (whole["object"], whole["total"], len(whole["data"])) == ("list", 5, 5)
    pages = [admin.get(f"/providers?current_page={at}&page_size=2") for at in range(4)]
    assert [len(page["data"]) for page in pages] == [2, 2, 1, 0]
    assert [row["slug"] for page in pages for row in page["data"]] == [row["slug"] for row in whole["data"]]
    for query, param in (
        ("current_page=-1", "current_page"),
        ("page_size=0", "page_size"),
        ("page_size=1001", "page_size"),
        ("page_size=x", "page_size"),
    ):
        assert admin.get(f"/virtual-keys?{query}", status=400)["param"] == param


def test_a_key_whose_time_is_over_is_no_key(server: Server, admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from loomgate import clock

    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock.now() + 3600))
    slug = admin.post("/virtual-keys", {"name": "x", "provider": "openai", "key": SECRET, "expires_at": later})["slug"]
    assert admin.get(f"/virtual-keys/{slug}")["expires_at"] == later.replace("Z", ".000Z")
    assert opened(server, workspace_of(admin), slug) is not None
    with monkeypatch.context() as patch:
        after = clock.now() + 3601
        patch.setattr(clock, "now", lambda: after)
        assert opened(server, workspace_of(admin), slug) is None
        assert admin.get(f"/virtual-keys/{slug}")["status"] == "exhausted"
        assert admin.get(f"/providers/{slug}")["status"] == "expired"


# --- the settings file -----------------------------------------------------------------------------------------------


def test_what_the_file_declares_is_listed_and_read_only(declaring: Server) -> None:
    admin = declaring.admin("acme")
    rows = {row["slug"]: row for row in admin.get("/virtual-keys")["data"]}
    assert rows.keys() == {"team", "lent"}
    assert rows["team"]["masked_key"] == "sk-…1234"
    assert "masked_key" not in rows["lent"], "the operator's key is not the workspace's to see"
    assert all(row["read_only"] for row in rows.values())
    assert {row["slug"] for row in admin.get("/providers")["data"]} == {"team", "lent", "house"}
    for slug, table in (("team", "virtual_keys.team"), ("house", "providers.house")):
        for refused in (
            admin.put(f"/providers/{slug}", {"name": "x"}, status=400),
            admin.delete(f"/providers/{slug}", status=400),
        ):
            assert refused["code"] == "declared_in_file"
            assert f"[{table}]" in refused["message"]
    admin.put("/virtual-keys/team", {"name": "x"}, status=400)
    admin.delete("/virtual-keys/team", status=400)
    admin.get("/virtual-keys/other", status=404)


def test_a_provider_made_from_the_operators_integration_uses_its_key(declaring: Server) -> None:
    admin = declaring.admin("acme")
    refused = admin.post("/providers", {"name": "x", "integration_id": "house", "slug": "team"}, status=400)
    assert (refused["param"], refused["code"]) == ("slug", "slug_taken")
    limits = {"credit_limit": 5}
    made = admin.post("/providers", {"name": "ours", "integration_id": "house", "slug": "ours", "usage_limits": limits})
    assert made["slug"] == "ours"
    found = opened(declaring, "acme", "ours")
    assert found is not None
    assert (found.provider, found.secret) == ("house", "sk-operators-own-0123456789")
    assert found.options == {"openai_organization": "org-house"}
    assert len(found.budgets) == 1
    shown = admin.raw("GET", "/v1/virtual-keys/ours").body + admin.raw("GET", "/v1/providers/ours").body
    assert b"operators" not in shown
    assert admin.put("/virtual-keys/ours", {"key": "sk-mine"}, status=400)["param"] == "key"
    lent = opened(declaring, "acme", "lent")
    assert lent is not None
    assert (lent.secret, lent.options) == ("sk-operators-own-0123456789", {"openai_organization": "org-house"})


def test_an_operators_key_never_goes_to_an_address_of_a_workspace(make_server: Callable[..., Server]) -> None:
    """A keyless integration of the workspace, whose name the operator uses later for a provider."""
    before = make_server()
    body = {"name": "x", "ai_provider_id": "bedrock", "slug": "bedrock",
            "configurations": {"custom_host": "https://evil.example", "aws_access_key_id": "AKIA0123456789",
                               "aws_secret_access_key": "mine-0123456789", "aws_region": "x"}}  # fmt: skip
    Client(before.url, headers={}).post("/integrations", body)
    provider = Provider(name="bedrock", vendor="bedrock", api_key=Secret("sk-operators-own-0123456789"))
    after = msgspec.structs.replace(before.settings, providers={"bedrock": provider})
    found = before.run(Saved(before.store, after).virtual_key("default", "bedrock"))
    assert found is not None
    assert found.base_url == "https://evil.example"
    assert "operators" not in found.secret + str(found.options)


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_is_written_down_anywhere(
    make_server: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    made = make_server()
    admin, secrets = made.admin("acme"), [f"sk-find-me-{at}-0123456789abcdef" for at in range(8)]
    check = {"id": "default.webhook", "parameters": {"webhookURL": "https://x.y/", "headers": {"x-auth": secrets[6]}}}
    actions = {"deny": True, "async": False,
               "on_success": {"feedback": {"value": 1, "weight": 1, "metadata": ""}},
               "on_fail": {"feedback": {"value": -1, "weight": 1, "metadata": ""}}}  # fmt: skip
    bodies: list[tuple[str, Any]] = [
        ("/virtual-keys", {"name": "a", "provider": "openai", "key": secrets[0]}),
        (
            "/virtual-keys",
            {"name": "b", "provider": "bedrock", "awsAccessKeyId": secrets[1], "awsSecretAccessKey": secrets[2]},
        ),
        (
            "/integrations",
            {
                "name": "c",
                "ai_provider_id": "openai",
                "key": secrets[3],
                "configurations": {"custom_headers": {"x-auth": secrets[4]}, "custom_host": "https://x.example"},
            },
        ),
        ("/configs", {"name": "d", "config": {"provider": "openai", "api_key": secrets[5]}}),
        ("/guardrails", {"name": "e", "checks": [check], "actions": actions}),
    ]
    answers: list[bytes] = []
    key = {"Authorization": f"Bearer {admin.key}"}
    for path, body in bodies:
        made_at = admin.post(path, body)
        for form in (path, f"{path}/{made_at.get('slug')}"):
            answers.append(admin.raw("GET", f"/v1{form}", headers=key).body)
        if path == "/configs":
            answers.append(admin.raw("GET", f"/v1{path}/{made_at['slug']}/versions").body)
            wrong = {"config": {"provider": "openai", "api_key": secrets[7], "retry": {}}}
            answers.append(str(admin.put(f"{path}/{made_at['slug']}", wrong, status=400)).encode())
    seen = b"".join(answers) + caplog.text.encode()
    assert b"sk-\xe2\x80\xa6cdef" in seen, "masks are there"
    on_disk = b"".join(file.read_bytes() for file in Path(made.settings.data).rglob("*") if file.is_file())
    for secret in secrets:
        for part in (secret, secret[3:-4]):
            assert part.encode() not in seen
            assert part.encode() not in on_disk
