"""`Gateway.call` before real HTTP endpoints: what the steps of the pipeline are to one another."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from loomgate import clock
from loomgate.gateway import Gateway, GatewayConfig, ProviderConfig, Stored, StoredKey
from loomgate.gateway.cache import AnswerCache
from loomgate.gateway.call import Answer, Request
from loomgate.gateway.config import Budget
from loomgate.gateway.limits import Limits
from loomgate.wire.configs import decode_config
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.limits import KeyLimits
from loomgate.wire.policy import Naming
from tests.providers.conformance import wire_bedrock, wire_cohere
from tests.support import peer
from tests.support.upstream import Fault, ModelEndpoint
from tests.support.waiting import settle, until

pytestmark = pytest.mark.anyio

KEY = "sk-operator-0123456789abcdef"
TARGETS = [{"provider": "a"}, {"provider": "b"}]


@pytest.fixture
async def endpoint() -> AsyncIterator[ModelEndpoint]:
    async with ModelEndpoint(api_key=KEY) as running:
        yield running


@pytest.fixture
async def other() -> AsyncIterator[ModelEndpoint]:
    async with ModelEndpoint(api_key=KEY) as running:
        yield running


@pytest.fixture
async def gateway(endpoint: ModelEndpoint, other: ModelEndpoint) -> AsyncIterator[Gateway]:
    made = Gateway(
        GatewayConfig(
            providers={
                name: ProviderConfig(vendor="openai", base_url=one.base_url, api_key=KEY)
                for name, one in (("a", endpoint), ("b", other))
            }
        ),
        cache=AnswerCache(1 << 20, None),
    )
    yield made
    await made.close()


async def call(gateway: Gateway, config: dict[str, Any], text: str = "/say Hello", **fields: Any) -> Answer:
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **fields}).encode()
    naming = Naming(inline=decode_config(json.dumps(config)))
    return await gateway.call(Request(ENDPOINTS["chat"], naming, "ws", body=body))


def told(answer: Answer) -> Any:
    assert answer.body is not None
    return json.loads(answer.body)


def says(answer: Answer) -> str:
    return told(answer)["choices"][0]["message"]["content"]


# --- strategies and retries ---


@pytest.mark.behaviour("RTY-07", "FB-05", "RSP-03")
async def test_each_target_counts_its_own_retries(
    endpoint: ModelEndpoint, other: ModelEndpoint, gateway: Gateway
) -> None:
    config = {"strategy": {"mode": "fallback"}, "retry": {"attempts": 2}, "targets": TARGETS}
    endpoint.faults += [Fault(status=500)] * 3
    other.faults += [Fault(status=503)]
    task = asyncio.create_task(call(gateway, config))
    for asked in ((1, 0), (2, 0), (3, 1)):  # the second target's back-off begins at one second again
        await until(lambda asked=asked: (len(endpoint.requests), len(other.requests)) == asked)
        await settle()
        clock.advance(2.01 if asked == (2, 0) else 1.01)
    answer = await task
    assert (answer.status, answer.path, answer.retries) == (200, "config.targets[1]", 1)
    assert (len(endpoint.requests), len(other.requests)) == (3, 2)
    endpoint.faults += [Fault(status=401)]
    assert (await call(gateway, config)).retries == 0


@pytest.mark.behaviour("FB-08", "STM-10")
async def test_a_stream_that_breaks_is_not_begun_again_elsewhere(
    endpoint: ModelEndpoint, other: ModelEndpoint, gateway: Gateway
) -> None:
    config = {"strategy": {"mode": "fallback"}, "retry": {"attempts": 1}, "targets": TARGETS}
    answer = await call(gateway, config, "/say one two\n/error cut", stream=True)
    assert answer.status == 200
    assert answer.stream is not None
    got = b""
    try:
        async for piece in answer.stream:
            got += piece
    except Exception as error:
        got += repr(error).encode()
    assert b'"content":"one "' in got
    assert b"[DONE]" not in got
    assert (len(endpoint.requests), len(other.requests)) == (1, 0)


# --- time-outs ---


@pytest.mark.behaviour("TMO-02", "TMO-01")
async def test_the_clock_of_a_time_out_is_that_of_one_try_and_stops_with_the_headers(
    endpoint: ModelEndpoint, gateway: Gateway
) -> None:
    config = {"provider": "a", "request_timeout": 5000, "retry": {"attempts": 2, "on_status_codes": [408, 500]}}
    endpoint.faults += [Fault(wait=100), Fault(wait=4, status=500)]
    task = asyncio.create_task(call(gateway, config, "/say one\n/wait 60\n/say two", stream=True))
    # 5 s for the first try, 1 s of back-off, 4 s for the second, 2 s of back-off: 12 s in all, and none is too long.
    for number, step in ((1, 5.01), (1, 1.01), (2, 4.01), (2, 2.01)):
        await until(lambda number=number: len(endpoint.requests) == number)
        await settle()
        clock.advance(step)
        await settle()
    answer = await task
    assert (answer.status, answer.retries) == (200, 2)
    assert answer.stream is not None
    body = asyncio.create_task(_all(answer.stream))
    await settle()
    clock.advance(60.01)  # twelve times what the headers were allowed to take
    assert b'two"' in await body


async def _all(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in stream])


@pytest.mark.behaviour("TMO-04", "TMO-01")
async def test_a_time_out_is_told_in_the_words_of_the_gateway(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    endpoint.faults += [Fault(wait=100)]
    task = asyncio.create_task(call(gateway, {"provider": "a", "request_timeout": 5000}))
    await until(lambda: endpoint.requests)
    await settle()
    clock.advance(5.01)
    answer = await task
    message = "Request exceeded the timeout sent in the request: 5000ms"
    assert answer.status == 408
    assert told(answer) == {"error": {"message": message, "type": "timeout_error", "param": None, "code": None}}


@pytest.mark.behaviour("TMO-04", "GERR-10")
async def test_a_spent_budget_is_told_in_the_words_of_the_gateway(endpoint: ModelEndpoint) -> None:
    rules = msgspec.convert({"usage_limits": {"credit_limit": 1.0}}, KeyLimits)
    key = StoredKey(
        provider="anthropic", api_key=KEY, base_url=endpoint.base_url, private=True, budgets=(Budget("ws/key", rules),)
    )

    async def stored(_workspace: str, slug: str) -> StoredKey | None:
        return key if slug == "key" else None

    limits = Limits()
    limits.spend("ws/key", 1.0, 1)
    gateway = Gateway(GatewayConfig(), stored=Stored(key=stored), limits=limits)
    answer = await call(gateway, {"provider": "@key"})
    assert answer.status == 412
    error = told(answer)["error"]
    assert error["code"] == "budget_exceeded"
    assert error["message"].startswith("The budget")
    assert "anthropic" not in error["message"]
    assert "provider" not in told(answer)
    assert not endpoint.requests
    await gateway.close()


# --- guardrails, the cache and the endpoint's status ---

QUIET: dict[str, Any] = {"alluppercase": {}}  # what the stand-in says here is in lower case, so it fails


@pytest.mark.behaviour("CCH-08", "GR-10", "GR-12")
async def test_the_input_is_checked_before_the_cache_is_asked(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    cached: dict[str, Any] = {"provider": "a", "cache": {"mode": "simple"}}
    assert (await call(gateway, cached, "/say Hi")).cache == "MISS"
    for guard, status in ((QUIET, 246), ({"regexMatch": {"rule": "say"}}, 200), ({**QUIET, "deny": True}, 446)):
        answer = await call(gateway, {**cached, "input_guardrails": [guard]}, "/say Hi")
        assert answer.status == status
        results = told(answer)["hook_results"]["before_request_hooks"]
        assert [result["verdict"] for result in results] == [status == 200]
        if status != 446:
            assert answer.cache == "HIT"
            assert says(answer) == "Hi"
    assert "hook_results" not in told(await call(gateway, cached, "/say Hi"))  # each has its own, or none
    assert len(endpoint.requests) == 1


@pytest.mark.behaviour("GR-08", "GR-14")
@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("deny", [False, True])
async def test_an_error_of_the_endpoint_keeps_its_status_and_is_not_checked(
    endpoint: ModelEndpoint, gateway: Gateway, status: int, deny: bool
) -> None:
    config = {"provider": "a", "output_guardrails": [{**QUIET, "deny": deny}], "input_guardrails": [QUIET]}
    endpoint.faults += [Fault(status=status)]
    answer = await call(gateway, config, "/say hi")
    assert answer.status == status
    assert told(answer)["error"]["message"].startswith("openai error: ")
    assert "hook_results" not in told(answer)
    assert (await call(gateway, config, "/say hi")).status == (446 if deny else 246)


@pytest.mark.behaviour("CCH-09")
async def test_answers_with_a_fault_are_not_kept(endpoint: ModelEndpoint, gateway: Gateway) -> None:
    config = {"provider": "a", "cache": {"mode": "simple"}}
    endpoint.faults += [Fault(status=500)]
    assert [((answer := await call(gateway, config)).status, answer.cache) for _ in range(3)] == [
        (500, "MISS"),
        (200, "MISS"),
        (200, "HIT"),
    ]
    guarded = {**config, "output_guardrails": [QUIET]}
    for _ in range(2):
        answer = await call(gateway, guarded, "/say other")
        assert (answer.status, answer.cache) == (246, "MISS")
    assert len(endpoint.requests) == 4


# --- streams ---

SAID: dict[str, tuple[str, bytes]] = {
    "google": (
        "application/json",
        b'data: {"candidates":[{"content":{"parts":[{"text":"Hi"}],"role":"model"},"finishReason":"STOP"}]}\r\n\r\n',
    ),
    "cohere": (
        "application/stream+json",
        wire_cohere.event("message-start", id="m-1", delta=wire_cohere.message(role="assistant"))
        + wire_cohere.event("content-delta", index=0, delta=wire_cohere.message(content={"text": "Hi"}))
        + wire_cohere.event("message-end", delta={"finish_reason": "COMPLETE"}),
    ),
    "bedrock": (
        "application/vnd.amazon.eventstream",
        wire_bedrock.event("messageStart", {"role": "assistant"})
        + wire_bedrock.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hi"}})
        + wire_bedrock.event("messageStop", {"stopReason": "end_turn"}),
    ),
}


@pytest.mark.behaviour("STM-08", "STM-04")
@pytest.mark.parametrize("vendor", SAID)
async def test_translated_streams_are_told_as_what_they_are(vendor: str) -> None:
    kind, body = SAID[vendor]
    async with peer.Server(peer.saying(peer.answer(body, "200 OK", f"Content-Type: {kind}", "X-Mine: 1"))) as server:
        provider = ProviderConfig(vendor=vendor, base_url=server.url, api_key=KEY)
        gateway = Gateway(GatewayConfig(providers={"a": provider}))
        answer = await call(gateway, {"provider": "a", "override_params": {"model": "m"}}, stream=True)
        assert answer.stream is not None
        assert [value for name, value in answer.headers if name == b"content-type"] == [
            b"text/event-stream; charset=utf-8"
        ]
        assert (b"x-mine", b"1") in answer.headers
        events = (await _all(answer.stream)).split(b"\n\n")
        assert events[-2:] == [b"data: [DONE]", b""]
        told = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
        assert "".join(one["choices"][0]["delta"].get("content") or "" for one in told if one["choices"]) == "Hi"
        await gateway.close()
