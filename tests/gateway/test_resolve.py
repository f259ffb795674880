"""What a stored key leads to is remembered, and no longer than it is that key."""

import asyncio

import msgspec
import pytest

from loomgate.errors import ApiError
from loomgate.gateway.call import Effective, Request
from loomgate.gateway.config import GatewayConfig, Stored, StoredKey
from loomgate.gateway.resolve import Resolved, Resolver
from loomgate.store.accounts import Opened
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.policy import Naming

KEY = StoredKey(provider="openai", api_key="sk-1", base_url="https://one.example/v1")
NAMED = Effective(virtual_key="team")


class Shelf:
    """Stored keys by workspace, and a resolver of them."""

    def __init__(self, **keys: StoredKey) -> None:
        self.keys = keys
        self._resolver = Resolver(GatewayConfig(), Stored(key=self._key))

    async def _key(self, workspace: str, _slug: str) -> StoredKey | None:
        return self.keys.get(workspace)

    def resolve(self, model: str | None, effective: Effective = NAMED, workspace: str = "default") -> Resolved:
        request = Request(ENDPOINTS["chat"], Naming(), workspace)
        return asyncio.run(self._resolver.resolve(request, effective, model))


def test_the_same_key_and_model_are_made_once() -> None:
    shelf = Shelf(default=KEY)
    assert shelf.resolve("a") is shelf.resolve("a")


def test_models_of_one_key_are_told_apart() -> None:
    shelf = Shelf(default=KEY)
    assert [shelf.resolve(model).model for model in ("a", "b", None, "a")] == ["a", "b", None, "a"]


def test_a_key_that_was_changed_is_made_anew() -> None:
    shelf = Shelf(default=KEY)
    shelf.resolve("a")
    shelf.keys["default"] = msgspec.structs.replace(KEY, api_key="sk-2", base_url="https://two.example/v1")
    target = shelf.resolve("a").target
    assert (target.base_url, target.api_key) == ("https://two.example/v1", "sk-2")


def test_a_key_that_is_gone_leads_nowhere() -> None:
    shelf = Shelf(default=KEY)
    shelf.resolve("a")
    del shelf.keys["default"]
    with pytest.raises(ApiError, match="neither a virtual key"):
        shelf.resolve("a")


def test_workspaces_share_nothing() -> None:
    shelf = Shelf(one=KEY, two=msgspec.structs.replace(KEY, api_key="sk-2"))
    assert [shelf.resolve("a", workspace=name).target.api_key for name in ("one", "two")] == ["sk-1", "sk-2"]


def test_a_model_that_is_not_allowed_is_refused_every_time() -> None:
    opened = Opened(provider="openai", secret="sk-1", base_url=None, models={"b": False})
    shelf = Shelf(default=msgspec.structs.replace(KEY, opened=opened))
    for _ in range(2):
        shelf.resolve("a")
        with pytest.raises(ApiError, match="not allowed"):
            shelf.resolve("b")


def test_what_a_request_brings_itself_is_not_remembered() -> None:
    shelf = Shelf(default=KEY)
    plain = shelf.resolve("a")
    with pytest.raises(ApiError, match="custom host"):
        shelf.resolve("a", Effective(virtual_key="team", custom_host="https://other.example"))
    shelf.resolve("a", Effective(virtual_key="team", options={"openai_project": "p"}))
    assert shelf.resolve("a") is plain
