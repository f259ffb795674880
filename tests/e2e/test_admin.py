"""Portkey's own Python client on the admin routes, unchanged."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import says of its own dependencies is not ours
    from portkey_ai import Portkey

from tests.support.server import Server

pytestmark = [
    pytest.mark.behaviour("AUTH-01", "AUTH-02"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]

SECRET = "sk-provider-0123456789abcdefghijkl1234"


@pytest.fixture
def portkey(server: Server) -> Iterator[Any]:
    made = Portkey(api_key=server.new_key(role="admin"), base_url=server.url + "/v1")
    yield made
    made._client.close()  # pyright: ignore[reportPrivateUsage] - it has no other way
    made.openai_client.close()


def test_virtual_keys(portkey: Any) -> None:
    made = portkey.virtual_keys.create(name="team", provider="openai", key=SECRET, note="n")
    assert made.slug.startswith("team-")
    assert [row["slug"] for row in portkey.virtual_keys.list().data] == [made.slug]
    assert portkey.virtual_keys.retrieve(slug=made.slug).name == "team"
    limits = [{"type": "requests", "unit": "rpm", "value": 696}]
    portkey.virtual_keys.update(slug=made.slug, name="crew", rate_limits=limits)
    assert portkey.virtual_keys.retrieve(slug=made.slug).rate_limits == limits
    portkey.virtual_keys.delete(slug=made.slug)
    assert portkey.virtual_keys.list().total == 0


def test_configs(portkey: Any) -> None:
    config = {"retry": {"attempts": 3}, "cache": {"mode": "simple"}}
    made = portkey.configs.create(name="ConfigName_0909", config=config)
    assert made.slug.startswith("pc-")
    assert portkey.configs.retrieve(slug=made.slug).config == config
    assert portkey.configs.list().data[0]["slug"] == made.slug
    changed = portkey.configs.update(slug=made.slug, name="other", config={"retry": {"attempts": 1}}, status="active")
    assert changed.version_id != made.version_id
    portkey.configs.delete(slug=made.slug)
    assert portkey.configs.list().total == 0


def test_integrations_and_providers(portkey: Any) -> None:
    made = portkey.integrations.create(name="Account", ai_provider_id="openai", key=SECRET, slug="account")
    assert portkey.integrations.retrieve(slug=made.slug).masked_key == "sk-…1234"
    assert portkey.integrations.list().data[0].slug == "account"
    provider = portkey.providers.create(name="ours", integration_id="account")
    assert {row.slug for row in portkey.providers.list().data} == {"account", provider.slug}
    assert portkey.providers.retrieve(slug=provider.slug).integration_id == "account"
    portkey.providers.update(slug=provider.slug, note="n")
    portkey.integrations.models.update(slug="account", models=[{"slug": "gpt-4o", "enabled": True}])
    assert portkey.integrations.models.list(slug="account").models[0].slug == "gpt-4o"
    assert portkey.integrations.workspaces.list(slug="account").workspaces[0].enabled
    for slug in ("account", provider.slug):
        portkey.providers.delete(slug=slug)
    portkey.integrations.delete(slug="account")


def test_guardrails(portkey: Any) -> None:
    checks = [{"id": "default.contains", "parameters": {"words": ["x"], "operator": "none"}}]
    made = portkey.guardrails.create(name="polite", checks=checks, actions={"deny": True})
    assert portkey.guardrails.list().total == 1
    assert portkey.guardrails.retrieve(guardrail_id=made.slug).checks[0]["id"] == "default.contains"
    portkey.guardrails.update(guardrail_id=made.slug, name="kind")
    portkey.guardrails.delete(guardrail_id=made.slug)


def test_errors_are_read(portkey: Any) -> None:
    with pytest.raises(Exception, match="Missing required parameter: 'name'"):
        portkey.virtual_keys.create(provider="openai", key=SECRET)
