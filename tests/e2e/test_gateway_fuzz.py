"""Whatever a client sends, the gateway answers: a 4xx that says why, or what the endpoint said; never a secret."""

import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.eventually import eventually
from tests.support.server import Client, Response
from tests.support.standin import chat_answer
from tests.support.way import OWN, Way

# The server draws its own in another thread while values are drawn here.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
NAMES = (
    "provider virtual-key config custom-host trace-id metadata cache-force-refresh cache-namespace request-timeout "
    "strict-open-ai-compliance forward-headers sensitive-headers debug span-id span-name parent-span-id "
    "fetch-integrated-models default-input-guardrails default-output-guardrails openai-beta openai-organization "
    "anthropic-version azure-resource-name azure-api-version aws-region vertex-region vertex-service-account-json "
    "oracle-region snowflake-account workers-ai-account-id huggingface-base-url nonsense"
).split()
# What may stand in a header, and what is worth trying in one.
TEXTS = st.one_of(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=40),
    st.sampled_from(
        ["{}", "[]", "null", "true", "0", "-1", "1e999", '{"a":', "@", "@/", "@a/b/c", "openai", "http://", "//"]
    ),
    st.sampled_from(["http://127.0.0.1:1", "http://[", "http://a:b@c", "../..", "{model}", "%00", "pc-1", "9" * 400]),
)
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        ["openai", "fallback", "loadbalance", "conditional", "simple", "semantic", "m", "config.targets[0]"]
    ),
)
FIELDS = st.sampled_from(
    "strategy mode on_status_codes conditions query then default targets provider virtual_key api_key custom_host "
    "weight retry attempts use_retry_after_headers cache max_age request_timeout override_params default_params "
    "drop_params forward_headers input_guardrails output_guardrails before_request_hooks default.contains words "
    "operator deny async cb_config failure_threshold name strict_open_ai_compliance passthrough odd model messages "
    "role content tools stream n stop response_format temperature max_tokens functions type function input".split()
)
JSON = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(FIELDS, JSON, max_size=6)
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def _answered(way: Way, found: Response, log: pytest.LogCaptureFixture) -> None:
    said = found.body.decode()
    assert found.status in (200, 246) or 400 <= found.status < 500 or found.status == 503, (found.status, said)
    if found.status >= 400:
        error = found.json["error"]
        assert error["message"] if isinstance(error, dict) else error
    for secret in (OWN, way.key):
        assert secret not in said
        assert secret not in str(found.headers)
        assert secret not in log.text
    assert "Traceback" not in log.text
    assert "cannot be written" not in log.text


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def asked(way: Way) -> Way:
    way.upstream.at("", chat_answer())
    return way


@FUZZ
@given(headers=st.dictionaries(st.sampled_from(NAMES), TEXTS, min_size=1, max_size=4))
def test_any_header(asked: Way, log: pytest.LogCaptureFixture, headers: dict[str, str]) -> None:
    for path, body in (("/chat/completions", b'{"model":"m","messages":[]}'), ("/proxy/x", b"{}")):
        _answered(asked, asked.named(**headers).raw("POST", path, body), log)


@pytest.mark.parametrize(
    "name", ["x-odd", "user-agent", "x-portkey-metadata", "x-portkey-trace-id", "x-portkey-span-name"]
)
def test_a_header_that_is_no_text_does_not_hold_up_the_log(
    asked: Way, log: pytest.LogCaptureFixture, name: str
) -> None:
    """It is logged as far as it can be read, and so are the calls after it."""
    asked.headers[name] = "\xf2\xff"
    found = asked.chat()
    assert found.status == 200
    trace = found.headers["x-portkey-trace-id"]
    log_of = Client(asked.url, asked.key, headers={})
    listed = eventually(lambda: log_of.raw("GET", "/v1/logs", check=False).json["data"])
    assert len(listed) == 1, trace
    assert "cannot be written" not in log.text


@FUZZ
@given(config=OBJECTS)
def test_any_config(asked: Way, log: pytest.LogCaptureFixture, config: dict[str, Any]) -> None:
    named = asked.named(config=json.dumps(config), request_timeout="2000")
    _answered(asked, named.chat(), log)


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings", "/messages"])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "google", "cohere", "bedrock"])
@settings(FUZZ, max_examples=15)
@given(body=OBJECTS)
def test_any_body(asked: Way, log: pytest.LogCaptureFixture, provider: str, path: str, body: dict[str, Any]) -> None:
    there = asked.at(provider, "/v1").named(aws_access_key_id="AKIA", aws_secret_access_key="s", aws_region="eu-west-1")
    found = there.post(path, {"model": "m", **body})
    told = found.json.get("error") if found.headers.get("content-type", "").startswith("application/json") else None
    if found.status == 500 and told and "is not supported by" in told["message"]:
        return  # GERR-04
    if found.status == 502:
        return  # the endpoint's answer is OpenAI's whatever was asked
    _answered(asked, found, log)
