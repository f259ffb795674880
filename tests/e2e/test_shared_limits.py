"""Two servers on one PostgreSQL and one Redis: limits, budgets and answers are those of both."""

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from loomgate import clock
from loomgate.settings import Price, Secret
from tests.support.background import Background
from tests.support.engines import Databases, RedisServer, folder
from tests.support.eventually import eventually
from tests.support.server import Client, Response, Server, serving
from tests.support.standin import StandIn, chat_answer

Pair = tuple[Server, Server]
_SEAL_KEY = Secret(secrets.token_hex(32))


@pytest.fixture
def background() -> Iterator[Background]:
    with Background() as made:
        yield made


@pytest.fixture
def upstream(background: Background) -> Iterator[StandIn]:
    made = StandIn()
    background.run(made.start())
    yield made
    background.run(made.stop())


@pytest.fixture
def make_pair(databases: Databases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Pair]]:
    """Makes two servers on one database and the Redis at an address, with the same settings."""
    monkeypatch.setenv("TRUSTED_CUSTOM_HOSTS", "127.0.0.1")
    with ExitStack() as stack:

        def make(redis_url: str, **changes: Any) -> Pair:
            url = anyio.run(databases.ready)
            stack.callback(lambda: anyio.run(databases.drop, url))
            given = {
                "database_url": Secret(url),
                "redis_url": Secret(redis_url),
                "redis_prefix": f"test-{secrets.token_hex(6)}",
                "seal_key": _SEAL_KEY,
                "database_connections": 4,
                **changes,
            }
            one, other = (stack.enter_context(serving(tmp_path / name, **given)) for name in "ab")
            return one, other

        yield make


def chat(server: Server, key: str, words: str = "/say Hello", **headers: str) -> Response:
    body = {"model": "scripted", "messages": [{"role": "user", "content": words}]}
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    client = Client(server.url, key, headers={})
    return client.raw("POST", "/v1/chat/completions", json.dumps(body).encode(), more, check=False)


def test_limits_of_the_api_are_those_of_both(make_pair: Callable[..., Pair], redis_url: str) -> None:
    one, other = make_pair(redis_url, workspace_requests_per_minute=5)
    key = one.new_key("team")
    assert [chat(server, key).status for server in (one, other, one, other, one, other)] == [200] * 5 + [429]
    assert chat(one, one.new_key("others")).headers["x-ratelimit-remaining-requests"] == "4"


@pytest.mark.behaviour("GERR-10")
def test_a_virtual_key_has_one_budget_and_one_rate(
    make_pair: Callable[..., Pair], redis_url: str, upstream: StandIn
) -> None:
    upstream.at("POST", chat_answer())
    one, other = make_pair(redis_url, prices={"openai/gpt-4o-mini": Price(input=100_000.0, output=0.0)})
    key = one.new_key("team", "admin")
    made = {
        "provider": "openai",
        "key": "sk-vendor-0123456789",
        "custom_host": upstream.url + "/v1",
        "usage_limits": {"credit_limit": 0.5},
    }
    admin = Client(one.url, key, headers={})
    spender = admin.post("/virtual-keys", {"name": "spender", **made})["data"]["slug"]
    rate = {"usage_limits": None, "rate_limits": [{"type": "requests", "unit": "rpd", "value": 3}]}
    fast = admin.post("/virtual-keys", {"name": "fast", **made, **rate})["data"]["slug"]

    def call(server: Server, slug: str) -> int:
        body = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}).encode()
        headers = {"x-portkey-virtual-key": slug}
        return (
            Client(server.url, key, headers={}).raw("POST", "/v1/chat/completions", body, headers, check=False).status
        )

    assert [call(server, fast) for server in (one, other, one, other)] == [200, 200, 200, 429]
    # All of the budget is spent at one node; the other, which has spent nothing, knows within a second or so.
    assert call(one, spender) == 200
    began = clock.monotonic()
    eventually(lambda: call(one, spender) == 412)
    eventually(lambda: call(other, spender) == 412)
    assert clock.monotonic() - began < 5.0


@pytest.mark.behaviour("CCH-01", "CCH-07", "RSP-04")
def test_what_one_was_answered_the_other_has(make_pair: Callable[..., Pair], redis_url: str, upstream: StandIn) -> None:
    one, other = make_pair(redis_url, semantic_cache_model="")
    key = one.new_key("team")
    config = {
        "cache": {"mode": "simple", "max_age": 3600},
        "provider": "openai",
        "custom_host": upstream.url + "/v1",
        "api_key": "sk-vendor-0123456789",
    }

    def ask(server: Server, **headers: str) -> tuple[str, str]:
        body = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}).encode()
        more = {
            "x-portkey-config": json.dumps(config),
            **{"x-portkey-" + n.replace("_", "-"): headers[n] for n in headers},
        }
        found = Client(server.url, key, headers={}).raw("POST", "/v1/chat/completions", body, more, check=False)
        assert found.status == 200
        return found.headers["x-portkey-cache-status"], found.json["choices"][0]["message"]["content"]

    upstream.say(chat_answer("first"))
    assert ask(one) == ("MISS", "first")
    assert ask(other) == ask(one) == ("HIT", "first")
    upstream.say(chat_answer("second"))
    assert ask(other, cache_force_refresh="true") == ("REFRESH", "second")
    assert ask(one) == ask(other) == ("HIT", "second")
    assert len(upstream.asked) == 2


def test_without_redis_each_goes_on_alone(make_pair: Callable[..., Pair]) -> None:
    with folder() as place:
        redis = RedisServer(place)
        redis.start()
        one, other = make_pair(redis.url, workspace_requests_per_minute=4, workspace_concurrency=10)
        key = one.new_key("team")
        assert [chat(server, key).status for server in (one, other)] == [200, 200]
        redis.stop()
        began = clock.monotonic()
        assert [chat(one, key).status for _ in range(4)] == [200, 200, 200, 429]
        assert clock.monotonic() - began < 3.0
        assert chat(other, key).status == 200
        redis.start()
        # Redis is a new one, and counts from nothing as soon as it is seen.
        eventually(lambda: chat(one, key).status == 200)
        redis.stop()
