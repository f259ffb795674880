"""Anthropic's own client on the gateway, unchanged: to Anthropic as it is, to the others translated."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from loomgate.wire.chat import Usage
from tests.providers.conformance.suite import Answer, Wire
from tests.providers.conformance.wire_anthropic import AnthropicWire
from tests.providers.conformance.wire_gemini import GeminiWire
from tests.providers.conformance.wire_openai import OpenAIWire
from tests.support.server import Server
from tests.support.standin import StandIn
from tests.support.way import OWN, Way

HI: Any = [{"role": "user", "content": "Hi"}]
OPENAI, ANTHROPIC, GEMINI = OpenAIWire(), AnthropicWire("anthropic", "claude-sonnet-4-6"), GeminiWire()
BASES = {"openai": "/v1", "anthropic": "/v1", "google": "/v1beta"}
VENDORS = pytest.mark.parametrize("vendor", [ANTHROPIC, OPENAI, GEMINI], ids=lambda vendor: vendor.vendor)
TOOL: Any = {
    "name": "weather",
    "description": "How it is outside.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def connect(way: Way, **options: Any) -> Anthropic:
    """The client as its users make it: the vendor's key is its own, the way is in headers."""
    headers = {name: value for name, value in way.sent().items() if name != "Authorization"}
    made: dict[str, Any] = {"api_key": OWN, "default_headers": headers, "max_retries": 0, **options}
    return Anthropic(base_url=way.url, **made)


def at(way: Way, vendor: Any) -> Anthropic:
    """Through the gateway to `upstream` as ``vendor``; another than Anthropic has its key in a bearer token."""
    key = {"api_key": OWN} if vendor is ANTHROPIC else {"api_key": None, "auth_token": OWN}
    return connect(way.at(vendor.vendor, BASES[vendor.vendor]), **key)


@pytest.fixture
def client(way: Way) -> Iterator[Anthropic]:
    """To `upstream` as Anthropic."""
    with at(way, ANTHROPIC) as made:
        yield made


# --- whatever the vendor ---------------------------------------------------------------------------------------------


@VENDORS
@pytest.mark.behaviour("RT-02", "AUTH-05", "AUTH-06")
def test_messages(way: Way, vendor: Wire) -> None:
    way.upstream.say(vendor.whole(Answer(text=["Good day: 世界."], usage=Usage(9, 4))))
    with at(way, vendor) as client:
        found: Any = client.messages.create(model=vendor.model, max_tokens=64, system="Be kind.", messages=HI)
    assert [(block.type, block.text) for block in found.content] == [("text", "Good day: 世界.")]
    assert (found.type, found.role, found.stop_reason) == ("message", "assistant", "end_turn")
    assert (found.usage.input_tokens, found.usage.output_tokens) == (9, 4)
    assert OWN in way.upstream.last.head.decode()
    assert way.key not in way.upstream.last.head.decode()
    assert b"Be kind." in way.upstream.last.body


@VENDORS
@pytest.mark.behaviour("STM-01")
def test_messages_as_a_stream(way: Way, vendor: Wire) -> None:
    said = Answer(text=["One ", "two ", "three."], usage=Usage(9, 4))
    way.upstream.stream(vendor.stream(said), kind=vendor.content_type)
    with (
        at(way, vendor) as client,
        client.messages.stream(model=vendor.model, max_tokens=64, messages=HI) as stream,
    ):
        assert "".join(stream.text_stream) == "One two three."
        found = stream.get_final_message()
    assert found.stop_reason == "end_turn"
    assert (found.usage.input_tokens, found.usage.output_tokens) == (9, 4)


@VENDORS
@pytest.mark.parametrize("streamed", [False, True])
def test_tools_and_their_results(way: Way, vendor: Wire, streamed: bool) -> None:
    """A call, and the conversation that follows from it."""
    said = Answer(text=["Let me look."], calls=[("weather", '{"city":"Oslo"}')], finish="tool_calls", usage=Usage(9, 4))
    asked: dict[str, Any] = {"model": vendor.model, "max_tokens": 64, "tools": [TOOL]}
    with at(way, vendor) as client:
        if streamed:
            way.upstream.stream(vendor.stream(said), kind=vendor.content_type)
            with client.messages.stream(**asked, messages=HI) as stream:
                found: Any = stream.get_final_message()
        else:
            way.upstream.say(vendor.whole(said))
            found = client.messages.create(**asked, messages=HI)
        text, call = found.content
        assert (text.text, call.name, call.input, found.stop_reason) == (
            "Let me look.",
            "weather",
            {"city": "Oslo"},
            "tool_use",
        )
        way.upstream.forget()
        way.upstream.say(vendor.whole(Answer(text=["3 degrees."], usage=Usage(30, 4))))
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "3 degrees outside"}
        told: Any = [*HI, {"role": "assistant", "content": found.content}, {"role": "user", "content": [result]}]
        found = client.messages.create(**asked, messages=told)
    assert found.content[0].text == "3 degrees."
    assert b"Oslo" in way.upstream.last.body
    assert b"3 degrees outside" in way.upstream.last.body


@pytest.mark.parametrize("vendor", [ANTHROPIC, GEMINI], ids=lambda vendor: vendor.vendor)
@pytest.mark.parametrize("streamed", [False, True])
def test_thoughts(way: Way, vendor: Wire, streamed: bool) -> None:
    said = Answer(thinking="Hm. Well.", text=["Four."], usage=Usage(9, 14, reasoning_tokens=10))
    asked: dict[str, Any] = {"model": vendor.model, "max_tokens": 2048, "messages": HI}
    asked["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    with at(way, vendor) as client:
        if streamed:
            way.upstream.stream(vendor.stream(said), kind=vendor.content_type)
            with client.messages.stream(**asked) as stream:
                found: Any = stream.get_final_message()
        else:
            way.upstream.say(vendor.whole(said))
            found = client.messages.create(**asked)
    blocks = {block.type: block for block in found.content}
    assert (blocks["thinking"].thinking, blocks["text"].text) == ("Hm. Well.", "Four.")
    assert b"1024" in way.upstream.last.body


ERRORS = {
    "invalid": anthropic.BadRequestError,
    "auth": anthropic.AuthenticationError,
    "rate_limit": anthropic.RateLimitError,
    "server": anthropic.InternalServerError,
    "overloaded": anthropic.InternalServerError,
}


@VENDORS
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.behaviour("GERR-01", "RSP-08")
def test_errors_of_a_vendor(way: Way, vendor: Wire, kind: str) -> None:
    status, headers, said = vendor.error(kind)
    way.upstream.say(said, f"{status} Status", *headers.items())
    # Google tells a wrong key as a wrong request.
    expected: Any = anthropic.BadRequestError if (vendor, kind) == (GEMINI, "auth") else ERRORS[kind]
    with at(way, vendor) as client, pytest.raises(anthropic.APIStatusError) as raised:
        client.messages.create(model=vendor.model, max_tokens=64, messages=HI)
    error: Any = raised.value
    assert isinstance(error, expected)
    assert error.status_code == status
    assert error.body["type"] == "error"
    assert error.body["error"]["type"]
    assert json.loads(said)["error"]["message"] in error.body["error"]["message"]


@VENDORS
def test_a_stream_that_fails_on_its_way(way: Way, vendor: Wire) -> None:
    """The client raises; it does not take half an answer for a whole one."""
    broken = vendor.midstream_error()
    assert broken is not None
    way.upstream.stream(broken, kind=vendor.content_type)
    with at(way, vendor) as client:
        stream = client.messages.create(model=vendor.model, max_tokens=64, messages=HI, stream=True)
        with pytest.raises(anthropic.APIError) as raised:
            list(stream)
    assert raised.value.message


# --- Anthropic to Anthropic: nothing is touched ----------------------------------------------------------------------


@pytest.mark.behaviour("STM-01", "RSP-05", "RSP-07")
def test_what_anthropic_says_passes_as_it_is(client: Anthropic, upstream: StandIn) -> None:
    said = ANTHROPIC.whole(Answer(thinking="Hm.", text=["Hi."], usage=Usage(9, 4)))
    upstream.say(said, "200 OK", ("request-id", "req_vendor"))
    raw = client.messages.with_raw_response.create(model=ANTHROPIC.model, max_tokens=64, messages=HI)
    assert raw.content == said
    assert raw.headers["x-portkey-provider"] == "anthropic"
    assert raw.headers["request-id"] == "req_vendor"
    events = ANTHROPIC.stream(Answer(thinking="Hm.", text=["Hi."], calls=[("weather", "{}")], usage=Usage(9, 4)))
    upstream.stream(events[:40], events[40:])
    with client.messages.with_streaming_response.create(
        model=ANTHROPIC.model, max_tokens=64, messages=HI, stream=True
    ) as streamed:
        assert b"".join(streamed.iter_bytes()) == events


def test_what_the_client_asks_passes_as_it_is(client: Anthropic, upstream: StandIn) -> None:
    upstream.say(ANTHROPIC.whole(Answer(text=["Hi."], usage=Usage(9, 4))))
    ephemeral: Any = {"type": "ephemeral", "ttl": "1h"}
    client.beta.messages.create(
        model=ANTHROPIC.model,
        max_tokens=64,
        system=[{"type": "text", "text": "Long.", "cache_control": ephemeral}],
        messages=HI,
        metadata={"user_id": "ann"},
        top_k=7,
        extra_body={"of_tomorrow": {"a": [1]}},
        betas=["extended-cache-ttl-2025-04-11"],
    )
    asked = upstream.last
    assert asked.line.startswith("POST /v1/messages")
    assert json.loads(asked.body) == {
        "model": ANTHROPIC.model,
        "max_tokens": 64,
        "system": [{"type": "text", "text": "Long.", "cache_control": ephemeral}],
        "messages": HI,
        "metadata": {"user_id": "ann"},
        "top_k": 7,
        "of_tomorrow": {"a": [1]},
    }
    assert asked.headers["x-api-key"] == OWN
    assert asked.headers["anthropic-version"] == "2023-06-01"
    assert asked.headers["anthropic-beta"] == "extended-cache-ttl-2025-04-11"


def test_tokens_are_counted_by_anthropic(client: Anthropic, upstream: StandIn) -> None:
    upstream.at("POST /v1/messages/count_tokens ", {"input_tokens": 2095})
    assert client.messages.count_tokens(model=ANTHROPIC.model, messages=HI).input_tokens == 2095
    assert json.loads(upstream.last.body) == {"model": ANTHROPIC.model, "messages": HI}


def test_the_client_retries_by_its_own_rules(way: Way) -> None:
    status, _, said = ANTHROPIC.error("overloaded")
    way.upstream.say(said, f"{status} Busy", ("retry-after-ms", "1"))
    way.upstream.say(ANTHROPIC.whole(Answer(text=["Hi."], usage=Usage(9, 4))))
    with connect(way.at("anthropic", "/v1"), max_retries=1) as client:
        found: Any = client.messages.create(model=ANTHROPIC.model, max_tokens=64, messages=HI)
    assert found.content[0].text == "Hi."
    assert len(way.upstream.asked) == 2


# --- others ----------------------------------------------------------------------------------------------------------


def test_a_request_becomes_openais(way: Way) -> None:
    way.upstream.say(OPENAI.whole(Answer(text=["Hi."], usage=Usage(9, 4))))
    with at(way, OPENAI) as client:
        client.messages.create(
            model="gpt-4o",
            max_tokens=64,
            system="Be kind.",
            messages=HI,
            temperature=0.5,
            stop_sequences=["END"],
            tools=[TOOL],
            tool_choice={"type": "any"},
        )
    asked = way.upstream.last
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    sent = json.loads(asked.body)
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert (sent["temperature"], sent["stop"], sent["tool_choice"]) == (0.5, ["END"], "required")
    assert sent["tools"][0]["function"]["parameters"] == TOOL["input_schema"]
    assert "x-api-key" not in asked.headers
    assert "anthropic-version" not in asked.headers


@pytest.mark.parametrize("vendor", [OPENAI, GEMINI], ids=lambda vendor: vendor.vendor)
def test_tokens_are_estimated_where_nobody_counts_them(way: Way, vendor: Wire) -> None:
    with at(way, vendor) as client:
        short = client.messages.count_tokens(model=vendor.model, messages=HI).input_tokens
        long: Any = [{"role": "user", "content": "Hi there, " * 200}]
        assert 0 < short < 20 < client.messages.count_tokens(model=vendor.model, messages=long).input_tokens


# --- the gateway's own words -----------------------------------------------------------------------------------------


def test_a_stored_key_by_the_name_of_the_model(gateway: Server, upstream: StandIn) -> None:
    """What a coding agent is set to: an address, a token, and nothing else."""
    made = gateway.store.virtual_keys.create(
        "agents", "claude", "anthropic", "sk-ant-stored-0123456789", upstream.url + "/v1"
    )
    assert gateway.run(made)
    key = gateway.new_key("agents")
    for options in ({"api_key": None, "auth_token": key}, {"api_key": key}):
        upstream.forget()
        upstream.say(ANTHROPIC.whole(Answer(text=["Hi."], usage=Usage(9, 4))))
        with Anthropic(base_url=gateway.url, max_retries=0, **options) as client:  # pyright: ignore[reportArgumentType]
            found: Any = client.messages.create(model=f"@claude/{ANTHROPIC.model}", max_tokens=64, messages=HI)
        assert found.content[0].text == "Hi."
        assert upstream.last.headers["x-api-key"] == "sk-ant-stored-0123456789"
        assert key.encode() not in upstream.last.head


@pytest.mark.behaviour("VAL-21")
def test_errors_of_the_gateway(way: Way) -> None:
    with connect(way.named(provider="nobody")) as client, pytest.raises(anthropic.BadRequestError) as raised:
        client.messages.create(model="m", max_tokens=64, messages=HI)
    told: Any = raised.value.body
    assert "Invalid provider passed" in told["error"]["message"]
    assert told["error"]["type"] == "invalid_request_error"
    with connect(way.named(api_key="lg-nothing")) as client, pytest.raises(anthropic.AuthenticationError):
        client.messages.create(model="m", max_tokens=64, messages=HI)
    assert not way.upstream.asked
