"""Prices: which row a model gets, what it adds up to, and what answers of every vendor say was used."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.gateway.prices import NO_UNITS, Prices, Units, pricing_object, shipped, total
from loomgate.gateway.usage import answer_of, units_of, usage_of
from loomgate.providers.catalogue import CATALOGUE
from loomgate.settings import Price
from loomgate.wire.chat import Usage
from tests.support.openapi import DATA

# --- the table that ships ---


def test_every_row_that_ships_is_a_price_of_a_vendor() -> None:
    makers = {name for names in shipped().like.values() for name in names}
    for name, row in shipped().models.items():
        provider, _, model = name.partition("/")
        assert model
        assert provider in CATALOGUE.keys() | makers | _VENDORS, name
        price = Price(**row)
        assert row
        assert all(value >= 0 for value in row.values()), name
        if price.input is not None and price.cached_input is not None:
            assert price.cached_input <= price.input, name


# Vendors of GATEWAY section 13 that have rows.
_VENDORS = {"groq", "mistral-ai", "perplexity-ai", "deepseek", "x-ai", "voyage", "ollama", "scripted"}


def test_the_table_says_of_what_day_it_is_and_that_prices_change() -> None:
    assert len(shipped().dated) == 10
    assert "change" in shipped().note


@pytest.mark.parametrize(
    ("provider", "model", "input"),
    [
        ("openai", "gpt-4o", 2.5),
        ("openai", "gpt-4o-2024-08-06", 2.5),
        ("openai", "gpt-4o-2024-05-13", 5),  # a row of its own
        ("openai", "gpt-4o-mini-2024-07-18", 0.15),
        ("openai", "GPT-4o", 2.5),
        ("openai", "gpt-5.2-codex", 1.75),
        ("openai", "gpt-5.2-pro-2025-12-11", 21),
        ("azure-openai", "gpt-4o", 2.5),
        ("anthropic", "claude-sonnet-4-5-20250929", 3),
        ("anthropic", "claude-opus-4-1-20250805", 15),
        ("anthropic", "claude-opus-4-5", 5),
        ("anthropic", "claude-3-5-haiku-latest", 0.8),
        ("bedrock", "anthropic.claude-3-5-sonnet-20241022-v2:0", 3),
        ("bedrock", "us.anthropic.claude-sonnet-4-20250514-v1:0", 3),
        ("bedrock", "amazon.nova-pro-v1:0", 0.8),
        ("bedrock", "meta.llama3-3-70b-instruct-v1:0", 0.72),
        ("vertex-ai", "claude-opus-4-1@20250805", 15),
        ("vertex-ai", "google/gemini-2.5-flash", 0.3),
        ("vertex-ai", "publishers/google/models/gemini-2.5-pro", 1.25),
        ("google", "models/gemini-2.5-pro", 1.25),
        ("google", "gemini-2.5-flash", 0.3),
        ("google", "gemini-2.5-flash-lite", 0.1),
        ("groq", "openai/gpt-oss-120b", 0.15),
        ("ollama", "llama3.2:3b", 0),
    ],
)
def test_a_model_is_found_by_what_vendors_call_it(provider: str, model: str, input: float) -> None:
    found = Prices().find(provider, model)
    assert found is not None
    assert found.input == input


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "my-own"), ("nobody", "gpt-4o"), ("openai", ""), ("anthropic", "gpt-4o")]
)
def test_a_price_that_is_not_known_is_not_guessed(provider: str, model: str) -> None:
    assert Prices().find(provider, model) is None
    assert Prices().cost(provider, model, Usage(1, 1, 0, 0)) is None


def test_the_operators_rows_come_first_and_the_nearest_wins() -> None:
    prices = Prices(
        {
            "openai/gpt-4o": Price(input=1),
            "openai/gpt-4o-2024-11-20": Price(input=2),
            "mine/*": Price(input=3),
            "mine/llama-*": Price(input=4),
            "*/gpt-3.5-turbo": Price(input=5),
        }
    )
    for provider, model, input in [
        ("openai", "gpt-4o", 1),
        ("openai", "gpt-4o-2024-08-06", 1),
        ("openai", "gpt-4o-2024-11-20", 2),
        ("openai", "gpt-4o-mini", 0.15),
        ("azure-openai", "gpt-4o", 1),
        ("mine", "qwen", 3),
        ("mine", "llama-70b", 4),
        ("anyone", "gpt-3.5-turbo", 5),
    ]:
        found = prices.find(provider, model)
        assert found is not None
        assert found.input == input, (provider, model)


def test_what_clients_make_up_is_not_remembered_for_ever() -> None:
    prices = Prices()
    for n in range(10_000):
        prices.find("openai", f"made-up-{n}")
    assert len(prices._found) <= 4096


# --- the sum ---


@pytest.mark.parametrize(
    ("price", "usage", "units", "cost"),
    [
        (Price(input=2, output=8), Usage(1_000_000, 500_000, 0, 0), NO_UNITS, 6.0),
        (Price(input=2, cached_input=0.5, output=8), Usage(1_000_000, 0, 400_000, 0), NO_UNITS, 1.4),
        (Price(input=2, output=8), Usage(1_000_000, 0, 400_000, 0), NO_UNITS, 2.0),
        (Price(input=2, cache_write=2.5, cached_input=0.2), Usage(1_000_000, 0, 400_000, 0, 100_000), NO_UNITS, 1.33),
        (Price(input=2, output=8), Usage(1_000_000, 0, 0, 0, 100_000), NO_UNITS, 2.0),
        (Price(input=2, output=8), Usage(10, 10, 50, 0), NO_UNITS, 0.0001),  # more cached than there were
        (Price(input=0.1), Usage(1_000_000, 0, 0, 0), NO_UNITS, 0.1),
        (Price(image=0.04), None, Units(images=3), 0.12),
        (Price(second=0.0001), None, Units(seconds=90.5), 0.00905),
        (Price(character=15), None, Units(characters=2000), 0.03),
        (Price(search=0.002), None, Units(searches=1), 0.002),
        (Price(input=1, output=1, search=0.005), Usage(1_000_000, 0, 0, 0), Units(searches=2), 1.01),
        (Price(input=1), None, NO_UNITS, 0.0),
        (Price(output=1), Usage(5, 0, 0, 0), NO_UNITS, None),
        (Price(second=0.0001), Usage(5, 0, 0, 0), NO_UNITS, None),
        (Price(second=0.0001), Usage(5, 0, 0, 0), Units(seconds=10), 0.001),
    ],
)
def test_the_sum(price: Price, usage: Usage | None, units: Units, cost: float | None) -> None:
    assert total(price, usage, units) == (None if cost is None else pytest.approx(cost))


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_more_use_never_costs_less(prompt: int, completion: int, cached: int) -> None:
    price = Price(input=3, cached_input=0.3, output=15)
    cost = total(price, Usage(prompt, completion, min(cached, prompt), 0))
    more = total(price, Usage(prompt + 1, completion + 1, min(cached, prompt), 0))
    assert cost is not None
    assert more is not None
    assert 0 <= cost < more


# --- what answers say ---

OPENAI = {
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "total_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 7},
}


@pytest.mark.parametrize(
    ("endpoint", "body", "usage"),
    [
        ("chat", {"model": "m", "choices": [], "usage": OPENAI}, Usage(10, 20, 4, 7)),
        ("chat", {"usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}}, Usage(10, 20, 0, 0)),
        ("chat", {"usage": {**OPENAI, "prompt_tokens_details": None}}, Usage(10, 20, 0, 7)),
        ("embed", {"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}}, Usage(8, 0, 0, 0)),
        ("rerank", {"usage": {"total_tokens": 8}}, Usage(8, 0, 0, 0)),
        (
            "respond",
            {
                "usage": {
                    "input_tokens": 10,
                    "input_tokens_details": {"cached_tokens": 4},
                    "output_tokens": 20,
                    "output_tokens_details": {"reasoning_tokens": 7},
                    "total_tokens": 30,
                }
            },
            Usage(10, 20, 4, 7),
        ),
        (
            "messages",
            {
                "usage": {
                    "input_tokens": 10,
                    "cache_creation_input_tokens": 5,
                    "cache_read_input_tokens": 4,
                    "cache_creation": {"ephemeral_5m_input_tokens": 5},
                    "output_tokens": 20,
                    "service_tier": "standard",
                }
            },
            Usage(19, 20, 4, 0, 5),
        ),
        (
            "proxy",
            {
                "usageMetadata": {
                    "promptTokenCount": 10,
                    "candidatesTokenCount": 20,
                    "thoughtsTokenCount": 7,
                    "cachedContentTokenCount": 4,
                    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 10}],
                }
            },
            Usage(10, 27, 4, 7),
        ),
        ("proxy", {"usage": {"inputTokens": 10, "outputTokens": 20, "cacheReadInputTokens": 4}}, Usage(14, 20, 4, 0)),
        (
            "chat",
            {"usage": {"billed_units": {"input_tokens": 1}, "tokens": {"input_tokens": 10, "output_tokens": 20.0}}},
            Usage(10, 20, 0, 0),
        ),
        ("embed", {"meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 3}}}, Usage(3, 0, 0, 0)),
        ("chat", {"choices": []}, None),
        ("chat", {"usage": None}, None),
        ("chat", {"usage": {"prompt_tokens": "ten"}}, None),
        ("chat", {"usage": {"prompt_tokens": -1, "completion_tokens": True}}, None),
        ("chat", {"usage": {}}, None),
        ("chat", {"message": 'say "usage": {"prompt_tokens": 9, "completion_tokens": 9}'}, None),
    ],
)
def test_the_usage_of_a_whole_answer(endpoint: str, body: dict[str, Any], usage: Usage | None) -> None:
    for indent in (None, 2):
        assert usage_of(endpoint, "application/json", json.dumps(body, indent=indent).encode()) == usage


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def test_the_usage_of_streams() -> None:
    kind = "text/event-stream"
    empty = {"choices": [{"delta": {"content": "x"}}], "usage": None}
    assert usage_of("chat", kind, sse(empty, empty, {"choices": [], "usage": OPENAI})) == Usage(10, 20, 4, 7)
    # Some vendors count on in every chunk; the last word counts.
    growing = [{"usage": {"prompt_tokens": 10, "completion_tokens": n}} for n in range(200)]
    assert usage_of("chat", kind, sse(*growing)) == Usage(10, 199, 0, 0)
    anthropic = sse(
        {
            "type": "message_start",
            "message": {"usage": {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1}},
        },
        {"type": "message_delta", "usage": {"output_tokens": 20}},
    )
    assert usage_of("messages", kind, anthropic) == Usage(14, 20, 4, 0)
    done = {"type": "response.completed", "response": {"usage": {"input_tokens": 3, "output_tokens": 2}}}
    assert usage_of("respond", kind, sse({"response": {"usage": None}}, done)) == Usage(3, 2, 0, 0)


def test_the_usage_is_found_when_the_middle_is_missing() -> None:
    whole = json.dumps({"choices": ["x" * 10_000], "usage": OPENAI}).encode()
    assert usage_of("chat", "application/json", whole[:100] + whole[-300:]) == Usage(10, 20, 4, 7)


@given(st.binary(max_size=300))
def test_no_bytes_upset_it(noise: bytes) -> None:
    for body in (
        noise,
        b'{"usage":' + noise,
        b'{"usage":{' + noise + b"}",
        b'{"usageMetadata":{"promptTokenCount":' + noise,
    ):
        usage_of("chat", "application/json", body)
        answer_of(body)
        units_of("generate_image", "application/json", {}, body, len(body))
        units_of("transcribe", "application/json", {}, body, len(body))


def test_what_an_answer_calls_itself() -> None:
    body = json.dumps({"id": "c-1", "model": "gpt-4o-x", "choices": [{"finish_reason": "stop"}]}).encode()
    assert answer_of(body) == ("gpt-4o-x", "c-1", ("stop",))
    assert answer_of(b"no json") == ("", "", ())


@pytest.mark.parametrize(
    ("endpoint", "asked", "answer", "units"),
    [
        ("generate_image", {"n": 3}, b'{"data":[{},{}]}', Units(images=2)),
        ("generate_image", {"n": 3}, b"cut", Units(images=3)),
        ("generate_image", {}, b"cut", Units(images=1)),
        ("speak", {"input": "hello"}, b"", Units(characters=5)),
        ("transcribe", {}, b'{"text":"x","usage":{"type":"duration","seconds":9}}', Units(seconds=9.0)),
        ("transcribe", {}, b'{"text":"x","duration":8.5}', Units(seconds=8.5)),
        ("translate", {}, b'{"text":"x","duration":"8.5"}', Units(seconds=8.5)),
        ("transcribe", {}, b'{"text":"x","duration":"long"}', NO_UNITS),
        ("rerank", {}, b"{}", Units(searches=1)),
        ("chat", {}, b"{}", NO_UNITS),
    ],
)
def test_what_else_is_counted(endpoint: str, asked: dict[str, Any], answer: bytes, units: Units) -> None:
    assert units_of(endpoint, "application/json", asked, answer, len(answer)) == units


# --- as Portkey shows it ---


def test_a_price_as_portkey_shows_it_is_in_cents_for_one() -> None:
    shown = pricing_object(Price(input=2.5, cached_input=1.25, output=10))
    assert shown == {
        "pay_as_you_go": {
            "request_token": {"price": 0.00025},
            "response_token": {"price": 0.001},
            "cache_read_input_token": {"price": 0.000125},
        },
        "currency": "USD",
    }
    assert pricing_object(Price(image=0.04))["pay_as_you_go"] == {"image": {"default": {"default": {"price": 4}}}}


def test_every_price_that_ships_fits_portkeys_description() -> None:
    document = json.loads((DATA / "gateway.openapi.json").read_text())
    document["$ref"] = "#/components/schemas/ModelPricingConfig"
    judge = jsonschema.Draft202012Validator(document)
    for row in shipped().models.values():
        judge.validate(pricing_object(Price(**row)))
