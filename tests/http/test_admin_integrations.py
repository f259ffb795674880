"""Integrations, the providers made from them, their models and limits; answers are held against the description."""

from collections.abc import Callable
from typing import Any

import pytest

from loomgate.gateway.saved import Saved
from loomgate.settings import Provider, Secret
from loomgate.store.accounts import Opened
from tests.support import gateway_schema
from tests.support.server import Client, Server

SECRET = "sk-provider-0123456789abcdefghijkl1234"
AWS = {"aws_auth_type": "accessKey", "aws_region": "eu-west-1", "aws_access_key_id": "AKIA0123456789ABCDEF",
       "aws_secret_access_key": "aws-secret-0123456789abcdefghijkl"}  # fmt: skip


@pytest.fixture
def admin(server: Server) -> Client:
    return server.admin()


def workspace_of(client: Client) -> str:
    return client.raw("GET", "/v1/configs").headers["openai-organization"]


def opened(server: Server, client: Client, slug: str) -> Opened | None:
    return server.run(Saved(server.store, server.settings).virtual_key(workspace_of(client), slug))


def create(admin: Client, **fields: Any) -> dict[str, Any]:
    body = {"name": "Our account", "ai_provider_id": "openai", "key": SECRET, **fields}
    return admin.post("/integrations", {name: value for name, value in body.items() if value is not None})


@pytest.mark.behaviour("AUTH-02")
def test_an_integrations_life(server: Server, admin: Client) -> None:
    made = create(admin, description="for all", configurations={"openai_organization": "org-1"})
    slug = made["slug"]
    assert made["default_provider_slug"] == slug
    shown = admin.get(f"/integrations/{slug}")
    assert (shown["masked_key"], shown["description"], shown["type"]) == ("sk-…1234", "for all", "workspace")
    assert shown["configurations"] == {"openai_organization": "org-1"}
    assert admin.get(f"/integrations/{made['id']}") == shown
    (row,) = admin.get("/integrations")["data"]
    assert row["id"] == made["id"]
    assert admin.get("/integrations?type=organisation")["total"] == 0
    assert admin.get("/integrations?type=workspace")["total"] == 1
    assert admin.get("/integrations?type=mine", status=400)["param"] == "type"

    second = admin.post("/providers", {"name": "second", "integration_id": slug})["slug"]
    assert admin.get(f"/providers/{second}")["integration_id"] == slug
    for name in (slug, second):
        found = opened(server, admin, name)
        assert found is not None
        assert (found.provider, found.secret, found.options) == ("openai", SECRET, {"openai_organization": "org-1"})

    # A new key of the integration is the key of all that was made from it.
    admin.put(f"/integrations/{slug}", {"key": "sk-rotated-0123456789", "name": "New name"})
    found = opened(server, admin, second)
    assert found is not None
    assert found.secret == "sk-rotated-0123456789"
    shown = admin.get(f"/integrations/{slug}")
    admin.put(f"/integrations/{slug}", {"key": shown["masked_key"], "configurations": {}})
    found = opened(server, admin, second)
    assert found is not None
    assert (found.secret, found.options) == ("sk-rotated-0123456789", {})

    refused = admin.delete(f"/integrations/{slug}", status=400)
    assert refused["code"] == "in_use"
    assert second in refused["message"]
    for name in (slug, second):
        admin.delete(f"/providers/{name}")
    assert admin.delete(f"/integrations/{slug}") == {}
    admin.get(f"/integrations/{slug}", status=404)


def test_secrets_among_the_configurations(server: Server, admin: Client) -> None:
    slug = create(admin, ai_provider_id="bedrock", key=None, configurations=AWS)["slug"]
    shown = admin.get(f"/integrations/{slug}")["configurations"]
    assert shown == {
        "aws_auth_type": "accessKey",
        "aws_region": "eu-west-1",
        "masked_aws_access_key_id": "AKI…CDEF",
        "masked_aws_secret_access_key": "aws…ijkl",
    }
    admin.put(f"/integrations/{slug}", {"configurations": {**shown, "aws_region": "us-east-1"}})
    found = opened(server, admin, slug)
    assert found is not None
    expected = {name: value for name, value in AWS.items() if name != "aws_auth_type"}
    assert found.options == {**expected, "aws_region": "us-east-1"}
    wrong = {**shown, "masked_aws_secret_access_key": "aws…xxxx"}
    refused = admin.put(f"/integrations/{slug}", {"configurations": wrong}, status=400)
    assert refused["param"] == "configurations.masked_aws_secret_access_key"


@pytest.mark.parametrize(
    ("provider", "configurations", "options"),
    [
        (
            "openai",
            {
                "azure_auth_mode": "entra",
                "azure_resource_name": "r",
                "azure_entra_tenant_id": "t",
                "azure_entra_client_id": "c",
                "azure_entra_client_secret": "very-secret-0123456789",
                "azure_deployment_config": [
                    {"azure_api_version": "2024-06-01", "azure_deployment_name": "d", "azure_model_slug": "gpt-4o"}
                ],
            },
            {
                "azure_auth_mode": "entra",
                "resource_name": "r",
                "azure_entra_tenant_id": "t",
                "azure_entra_client_id": "c",
                "azure_entra_client_secret": "very-secret-0123456789",
                "deployments": [{"deployment_id": "d", "api_version": "2024-06-01", "alias": "gpt-4o"}],
            },
        ),
        (
            "vertex-ai",
            {
                "vertex_auth_type": "serviceAccount",
                "vertex_region": "europe-west4",
                "vertex_service_account_json": {"client_email": "a@b", "private_key": "k"},
            },
            {
                "vertex_region": "europe-west4",
                "vertex_service_account_json": {"client_email": "a@b", "private_key": "k"},
            },
        ),
        ("openai", {"workers_ai_account_id": "acc"}, {"workers_ai_account_id": "acc"}),
        ("openai", {"snowflake_account": "snow"}, {"snowflake_account": "snow"}),
    ],
)
def test_configurations_become_provider_data(
    server: Server, admin: Client, provider: str, configurations: dict[str, Any], options: dict[str, Any]
) -> None:
    body = {"name": "x", "ai_provider_id": provider, "key": SECRET, "configurations": configurations}
    gateway_schema.check_request("POST", "/v1/integrations", body)
    slug = admin.post("/integrations", body)["slug"]
    shown = admin.raw("GET", f"/v1/integrations/{slug}").body
    assert b"very-secret-0123456789" not in shown
    assert b"private_key" not in shown
    found = opened(server, admin, slug)
    assert found is not None
    assert found.options == options


def test_a_custom_host_and_headers(server: Server, admin: Client) -> None:
    configurations = {"custom_host": "https://models.example/v1", "custom_headers": {"X-Team": "blue-0123456789abcd"}}
    slug = create(admin, configurations=configurations)["slug"]
    shown = admin.get(f"/integrations/{slug}")["configurations"]
    assert shown == {"custom_host": "https://models.example/v1", "custom_headers": {"X-Team": "blu…abcd"}}
    found = opened(server, admin, slug)
    assert found is not None
    assert (found.base_url, found.headers) == ("https://models.example/v1", {"x-team": "blue-0123456789abcd"})
    assert not found.trusted, "no operator vouches for an address that came over the network"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"ai_provider_id": "nope"}, "ai_provider_id"),
        ({"name": None}, "name"),
        ({"key": None}, "key"),
        ({"slug": "a b"}, "slug"),
        ({"colour": "red"}, "colour"),
        ({"configurations": {"colour": "red"}}, "configurations.colour"),
        ({"configurations": {"openai_project": 7}}, "configurations.openai_project"),
        ({"configurations": {"custom_host": "nowhere"}}, "configurations.custom_host"),
        ({"configurations": {"aws_auth_type": "assumedRole", "aws_region": "x"}}, "configurations.aws_role_arn"),
        ({"configurations": {"masked_key": "x"}}, "configurations.masked_key"),
        ({"pricing_adjustments": {"multiplier": {"default": 0.5}}}, "pricing_adjustments"),
        ({"secret_mappings": [{}]}, "secret_mappings"),
        ({"create_default_provider": False, "default_provider_slug": "x"}, "default_provider_slug"),
        ({"workspace_id": "other"}, "workspace_id"),
    ],
)
def test_an_integration_is_refused_by_the_name_of_what_is_wrong(
    admin: Client, change: dict[str, Any], param: str
) -> None:
    body = {"name": "x", "ai_provider_id": "openai", "key": SECRET} | change
    body = {name: value for name, value in body.items() if value is not None}
    assert admin.post("/integrations", body, status=400)["param"] == param
    assert (admin.get("/integrations")["total"], admin.get("/providers")["total"]) == (0, 0)


def test_a_default_provider_needs_a_free_slug(admin: Client) -> None:
    create(admin, slug="one")
    refused = admin.post("/integrations", {"name": "x", "ai_provider_id": "openai", "key": SECRET, "slug": "two",
                                           "default_provider_slug": "one"}, status=400)  # fmt: skip
    assert (refused["param"], refused["code"]) == ("default_provider_slug", "slug_taken")
    assert create(admin, slug="two", create_default_provider=False)["slug"] == "two"
    assert admin.get("/providers")["total"] == 1
    assert admin.post("/integrations", {"name": "x", "ai_provider_id": "openai", "key": SECRET, "slug": "two"},
                      status=400)["code"] == "slug_taken"  # fmt: skip
    assert admin.post("/providers", {"name": "x", "integration_id": "none"}, status=400)["param"] == "integration_id"


def test_models_that_may_be_called(server: Server, admin: Client) -> None:
    slug = create(admin)["slug"]
    assert admin.get(f"/integrations/{slug}/models") == {
        "object": "list",
        "total": 0,
        "models": [],
        "allow_all_models": True,
    }
    models = [{"slug": "gpt-4o", "enabled": False}, {"slug": "mine", "enabled": True, "is_custom": True}]
    admin.put(f"/integrations/{slug}/models", {"models": models})
    found = opened(server, admin, slug)
    assert found is not None
    assert [found.allows(model) for model in ("gpt-4o", "mine", "other")] == [False, True, True]
    admin.put(f"/integrations/{slug}/models", {"models": [], "allow_all_models": False})
    found = opened(server, admin, slug)
    assert found is not None
    assert [found.allows(model) for model in ("gpt-4o", "mine", "other")] == [False, True, False]
    assert [model["slug"] for model in admin.get(f"/integrations/{slug}/models")["models"]] == ["gpt-4o", "mine"]
    admin.delete(f"/integrations/{slug}/models?slugs=gpt-4o")
    assert admin.get(f"/integrations/{slug}/models")["total"] == 1
    assert admin.delete(f"/integrations/{slug}/models", status=400)["param"] == "slugs"
    admin.delete(f"/integrations/{slug}/models?slugs=nope", status=404)
    priced = [{"slug": "a", "enabled": True, "pricing_config": {"type": "static"}}]
    refused = admin.put(f"/integrations/{slug}/models", {"models": priced}, status=400)
    assert (refused["param"], refused["code"]) == ("models[0].pricing_config", "unsupported_parameter")


def test_the_workspaces_share_of_an_integration(server: Server, admin: Client) -> None:
    slug = create(admin)["slug"]
    (own,) = admin.get(f"/integrations/{slug}/workspaces")["workspaces"]
    assert own["enabled"] is True
    access = {
        "id": own["id"],
        "enabled": True,
        "usage_limits": [{"credit_limit": 100, "type": "tokens"}],
        "rate_limits": [{"type": "tokens", "unit": "rph", "value": 5000}],
    }
    admin.put(f"/integrations/{slug}/workspaces", {"workspaces": [access]})
    admin.put(f"/providers/{slug}", {"usage_limits": {"credit_limit": 3}})
    (own,) = admin.get(f"/integrations/{slug}/workspaces")["workspaces"]
    assert (own["usage_limits"], own["rate_limits"]) == (access["usage_limits"], access["rate_limits"])
    found = opened(server, admin, slug)
    assert found is not None
    assert [budget.limits.usage_limits.credit_limit for budget in found.budgets if budget.limits.usage_limits] == [
        3,
        100,
    ]
    assert len({budget.id for budget in found.budgets}) == 2
    assert all(budget.since is None for budget in found.budgets)
    admin.put(f"/integrations/{slug}/workspaces", {"workspaces": [{"id": own["id"], "enabled": True,
                                                                  "reset_usage": True}]})  # fmt: skip
    admin.put(f"/providers/{slug}", {"reset_usage": True})
    found = opened(server, admin, slug)
    assert found is not None
    assert all(budget.since is not None for budget in found.budgets)
    admin.put(f"/integrations/{slug}/workspaces", {"workspaces": [{"id": own["id"], "enabled": False}]})
    assert opened(server, admin, slug) is None
    for body, param in (
        ({"workspaces": [{"id": "other", "enabled": True}]}, "workspaces[0].id"),
        ({"global_workspace_access": {"enabled": True}}, "global_workspace_access"),
        ({"override_existing_workspace_access": True}, "override_existing_workspace_access"),
    ):
        assert admin.put(f"/integrations/{slug}/workspaces", body, status=400)["param"] == param


def test_another_workspace_sees_no_integration(server: Server, admin: Client) -> None:
    slug = create(admin)["slug"]
    other = server.admin()
    assert other.get("/integrations")["total"] == 0
    for path in ("", "/models", "/workspaces"):
        other.get(f"/integrations/{slug}{path}", status=404)
    other.put(f"/integrations/{slug}", {"name": "x"}, status=404)
    other.delete(f"/integrations/{slug}", status=404)
    assert other.post("/providers", {"name": "x", "integration_id": slug}, status=400)["param"] == "integration_id"


def test_the_operators_are_seen_by_all_and_changed_by_none(make_server: Callable[..., Server]) -> None:
    made = make_server(providers={"house": Provider(name="house", vendor="openai", api_key=Secret(SECRET))})
    admin = made.admin("acme")
    (row,) = admin.get("/integrations")["data"]
    assert (row["slug"], row["ai_provider_id"], row["type"], row["read_only"]) == (
        "house",
        "openai",
        "organisation",
        True,
    )
    assert admin.get("/integrations/house")["masked_key"] == "***"
    for refused in (
        admin.put("/integrations/house", {"name": "x"}, status=400),
        admin.delete("/integrations/house", status=400),
        admin.put("/integrations/house/models", {"models": []}, status=400),
        admin.put("/integrations/house/workspaces", {}, status=400),
    ):
        assert refused["code"] == "declared_in_file"
        assert "[providers.house]" in refused["message"]
