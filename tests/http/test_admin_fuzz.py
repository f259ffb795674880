"""Whatever is sent to the admin routes, the answer is a 2xx or a 4xx in the documented form, and shows no secret."""

import json
import random
from typing import Any

import pytest

from loomgate.http.routes import ADMIN_ROUTES
from tests.support.server import Client, Server

SECRET = "sk-fuzz-0123456789abcdefghij"
GOOD: dict[str, Any] = {
    "/virtual-keys": {
        "name": "x",
        "provider": "openai",
        "key": SECRET,
        "awsSecretAccessKey": SECRET,
        "deploymentConfig": [{"apiVersion": "1", "deploymentName": "d"}],
        "usage_limits": {"credit_limit": 1, "periodic_reset": "monthly"},
        "rate_limits": [{"type": "requests", "unit": "rpm", "value": 1}],
        "expires_at": "2099-01-01T00:00:00Z",
    },
    "/providers": {"name": "x", "integration_id": "fuzz", "note": "n", "usage_limits": {"credit_limit": 1}},
    "/integrations": {
        "name": "x",
        "ai_provider_id": "openai",
        "key": SECRET,
        "configurations": {"custom_host": "https://x.example", "custom_headers": {"a": SECRET}},
    },
    "/integrations/{slug}/models": {"models": [{"slug": "a", "enabled": True}], "allow_all_models": True},
    "/integrations/{slug}/workspaces": {"workspaces": [{"id": "fuzz", "enabled": True, "rate_limits": None}]},
    "/configs": {
        "name": "x",
        "config": {
            "strategy": {"mode": "fallback"},
            "targets": [{"provider": "openai", "api_key": SECRET}, {"provider": "openai", "input_guardrails": []}],
        },
    },
    "/guardrails": {
        "name": "x",
        "checks": [{"id": "default.contains", "parameters": {"words": ["a"], "headers": {"k": SECRET}}}],
        "actions": {"deny": True, "async": False, "on_fail": {"feedback": {"value": 1, "weight": 1, "metadata": ""}}},
    },
}
ODD: list[Any] = [
    None, True, 0, -1, 2**70, 1.5, 1e400, "", "…", "***", "a\u0000b", "\ud83d\ude00", "x" * 5000, "@", "@x/y", [], [[]],
    {}, {"": 1}, {"a": {"b": [None]}}, "2099-13-99", "file:/etc/passwd", "env:HOME", [1, "a", None], {"provider": 5},
]  # fmt: skip


def mutated(dice: random.Random, value: Any) -> Any:
    """A copy of ``value`` with one thing in it changed, dropped, added or nested."""
    kind = dice.randrange(6)
    if isinstance(value, dict) and value and kind < 5:
        made = dict(value)
        key = dice.choice(list(made))
        if kind == 0:
            del made[key]
        elif kind == 1:
            made[dice.choice(["extra", "key", "slug", "options", "targets", "provider", "custom_host"])] = dice.choice(
                ODD
            )
        else:
            made[key] = mutated(dice, made[key])
        return made
    if isinstance(value, list) and value and kind < 4:
        made = list(value)
        at = dice.randrange(len(made))
        made[at] = mutated(dice, made[at])
        return made * dice.choice([1, 1, 2])
    return dice.choice(ODD)


@pytest.mark.parametrize(
    "row", [row for row in ADMIN_ROUTES if row.method in ("POST", "PUT")], ids=lambda row: f"{row.method} {row.path}"
)
def test_no_body_breaks_an_admin_route(server: Server, row: Any) -> None:
    admin = server.admin()
    made = {
        path: admin.post(path, body)["slug"] for path, body in GOOD.items() if "{" not in path and path != "/providers"
    }
    made["/providers"] = admin.post("/providers", {"name": "x", "integration_id": made["/integrations"]})["slug"]
    base = "/" + row.path.split("/")[1]
    path = row.path.replace("{slug}", made[base]).replace("{guardrail_id}", made[base])
    good = GOOD.get(row.path, GOOD[base])
    dice = random.Random(row.path + row.method)
    for _ in range(60):
        body = json.dumps(mutated(dice, good)).encode()
        response = admin.raw(row.method, f"/v1{path}", body)  # which holds the answer against the description
        assert response.status < 500, body
        assert SECRET.encode() not in response.body
    for body in (b"", b"{", b"[]", b'"x"', b"\xff", b"{" * 5, b'{"name":' * 3000, deep(good, 5000), deep(good, 300)):
        response = admin.raw(row.method, f"/v1{path}", body)
        assert response.status == 400 or (row.method == "PUT" and not body), body[:100]
    for form in (base, path):
        assert admin.raw("GET", f"/v1{form}").status == 200


def deep(good: dict[str, Any], levels: int) -> bytes:
    """``good`` with something nested that deeply in its first object."""
    nested = b"[" * levels + b"]" * levels
    return json.dumps({**good, "note": "NEST"}).encode().replace(b'"NEST"', nested)


@pytest.mark.parametrize("levels", [90, 300, 900])
def test_a_deep_config_is_refused_or_can_be_read_again(server: Server, levels: int) -> None:
    admin = server.admin()
    nested: Any = 1
    for _ in range(levels):
        nested = {"a": nested}
    body = json.dumps({"name": "x", "config": {"retry": {"attempts": 1}, "override_params": nested}}).encode()
    response = admin.raw("POST", "/v1/configs", body)
    if levels > 100:
        assert response.status == 400
    else:
        slug = response.json["slug"]
        assert admin.get(f"/configs/{slug}")["config"]["override_params"] == nested
        assert Client(server.url, admin.key, headers={}).get(f"/configs/{slug}/versions")["total"] == 1
