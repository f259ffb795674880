"""What the gateway refuses, and the errors it hands on, as a client reads them (GATEWAY sections 5 and 8)."""

import json
import logging
from typing import Any

import pytest

from tests.support.server import Client, Response
from tests.support.standin import chat_answer
from tests.support.way import OWN, Way


def _refused(found: Response, message: str, status: int = 400) -> dict[str, Any]:
    """VAL-21: what OpenAI's SDKs show, and what Portkey's clients read."""
    assert found.status == status, found.body
    assert found.headers["content-type"] == "application/json"
    told = found.json
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert (told["status"], told["message"], told["error"]["message"]) == ("failure", message, message)
    return told


# --- 5: what is refused before anything is asked ----------------------------------------------------------------------


@pytest.mark.behaviour("VAL-01", "VAL-21")
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
def test_a_content_type_that_nobody_reads(way: Way, path: str) -> None:
    _refused(way.raw("POST", path, b"<a/>", content_type="application/xml"), "Invalid content type passed")
    assert not way.upstream.asked


@pytest.mark.behaviour("VAL-02", "VAL-21")
def test_no_way_at_all(way: Way) -> None:
    found = Client(way.url, way.key, headers={}).raw("POST", "/v1/chat/completions", b'{"messages":[]}', check=False)
    _refused(found, "Either x-portkey-config or x-portkey-provider header is required")


@pytest.mark.behaviour("VAL-03", "VAL-21", "RSP-08")
def test_an_unknown_provider(way: Way) -> None:
    found = way.named(provider="nobody").chat()
    assert (found.status, found.json["error"]["code"]) == (400, "unknown_provider")
    assert found.json["message"].startswith("Invalid provider passed")
    assert not way.upstream.asked


@pytest.mark.behaviour("VAL-04", "VAL-21", "HOST-01", "HOST-02", "HOST-04")
@pytest.mark.parametrize(
    "host",
    [
        "http://10.0.0.1",
        "http://169.254.169.254/latest",
        "http://[::1]:1",
        "http://localhost:1",
        "ftp://example.com",
        "http://user@example.com",
        "http://2130706433",
        "http://0x7f.1",
        "http://example.com:99999",
        "http://api.portkey.ai",
        "nonsense",
        "http://a%2eb.example",
    ],
)
def test_custom_hosts_that_are_refused(way: Way, host: str) -> None:
    found = way.named(custom_host=host).chat()
    assert found.status == 400
    assert "Invalid custom host" in found.json["message"]
    for config in (
        {"custom_host": host},
        {
            "strategy": {"mode": "fallback"},
            "targets": [{"targets": [{"custom_host": host}], "strategy": {"mode": "single"}}],
        },
    ):
        found = way.config(config).chat()
        assert found.status == 400, found.body
        assert "custom host" in found.body.decode().lower()
    assert not way.upstream.asked


@pytest.mark.behaviour("VAL-05")
def test_a_config_that_leads_nowhere(way: Way) -> None:
    found = way.named(config='{"retry":{"attempts":1}}', provider="", custom_host="").chat()
    assert found.status == 400
    assert "provider" in found.json["message"]


@pytest.mark.behaviour("VAL-06")
@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"provider": "openai", "retry": {"attempts": "x"}}, "retry.attempts"),
        ({"provider": "openai", "cache": {"mode": "odd"}}, "cache.mode"),
        ({"strategy": {"mode": "odd"}, "targets": []}, "strategy.mode"),
        ({"targets": [{"weight": "heavy"}]}, "targets"),
        ({"provider": 7}, "provider"),
    ],
)
def test_a_config_against_the_schema(way: Way, config: dict[str, Any], path: str) -> None:
    found = way.named(config=json.dumps(config)).chat()
    assert found.status == 400
    assert found.json["message"].startswith("Invalid config passed")
    (error,) = found.json["errors"][:1]
    assert error.startswith("path: ")
    assert path.partition(".")[0] in error
    assert ", message: " in error


@pytest.mark.behaviour("VAL-07")
def test_a_config_of_the_old_form(way: Way) -> None:
    found = way.named(config='{"options":[{"provider":"openai"}]}').chat()
    message = "This version of config is not supported in this route. Please migrate to the latest version"
    _refused(found, message)


@pytest.mark.behaviour("VAL-08")
def test_a_config_that_is_no_json(way: Way) -> None:
    message = "Invalid config passed. You need to pass a valid json (in x-portkey-config)"
    for config in ("{nonsense", "[" * 20_000, '{"a":NaN}'):
        _refused(way.named(config=config).chat(), message)


@pytest.mark.behaviour("VAL-09", "RH-13")
def test_forwarding_itself(way: Way) -> None:
    found = way.named(forward_headers="x-one, X-Portkey-Forward-Headers").chat()
    _refused(found, "forward_headers must not contain the 'x-portkey-forward-headers' header")


@pytest.mark.behaviour("VAL-20", "VAL-21")
@pytest.mark.parametrize("body", [b"{", b"[1]", b'"x"', b"\xff\xfe", b'{"a":NaN}', b"[" * 100_000])
@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/messages", "/embeddings", "/responses"])
def test_bodies_that_cannot_be_read(way: Way, path: str, body: bytes) -> None:
    found = way.raw("POST", path, body)
    assert found.status == 400, found.body
    assert found.json["error"]["message"]
    assert not way.upstream.asked


def test_a_body_that_is_too_large(way: Way) -> None:
    found = way.raw("POST", "/chat/completions", b"{}", Content_Length=str(10**12))
    assert (found.status, found.json["error"]["type"]) == (413, "invalid_request_error")


# --- 8: errors of those who are asked ---------------------------------------------------------------------------------


@pytest.mark.behaviour("GERR-01", "GERR-02", "RSP-05", "RSP-08", "STM-02")
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_openai(way: Way, stream: bool) -> None:
    said = {"error": {"message": "Slow down.", "type": "tokens", "param": None, "code": "rate_limit_exceeded"}}
    way.upstream.say(said, "429 Too Many Requests", ("Retry-After", "0"), ("X-RateLimit-Remaining", "0"))
    found = way.chat(stream=stream)
    assert (found.status, found.headers["content-type"]) == (429, "application/json")
    assert found.json == {"error": {**said["error"], "message": "openai error: Slow down."}, "provider": "openai"}
    assert (found.headers["retry-after"], found.headers["x-ratelimit-remaining"]) == ("0", "0")
    assert found.headers["x-portkey-provider"] == "openai"
    assert found.headers["x-portkey-retry-attempt-count"] == "0"


@pytest.mark.behaviour("GERR-02")
@pytest.mark.parametrize(
    ("provider", "said", "expected"),
    [
        (
            "anthropic",
            {"type": "error", "error": {"type": "overloaded_error", "message": "Over"}},
            ("anthropic error: Over", "overloaded_error", None, None),
        ),
        (
            "google",
            {"error": {"code": 400, "message": "Bad", "status": "INVALID_ARGUMENT"}},
            ("google error: Bad", "INVALID_ARGUMENT", None, 400),
        ),
        ("cohere", {"message": "Bad"}, ("cohere error: Bad", None, None, None)),
    ],
)
def test_errors_of_others(way: Way, provider: str, said: Any, expected: tuple[Any, ...]) -> None:
    way.upstream.say(said, "400 Bad Request")
    found = way.at(provider).chat()
    assert (found.status, found.json["provider"]) == (400, provider)
    error = found.json["error"]
    assert (error["message"], error["type"], error["param"]) == expected[:3]
    assert str(error["code"]) == str(expected[3])


@pytest.mark.behaviour("GERR-09")
@pytest.mark.parametrize("kind", ["text/plain", "text/html"])
def test_an_error_that_is_no_json(way: Way, kind: str) -> None:
    way.upstream.say(b"<h1>Bad gateway</h1>", "502 Bad Gateway", ("Content-Type", kind))
    found = way.chat()
    assert (found.status, found.headers["content-type"]) == (502, "application/json")
    assert "Bad gateway" in found.json["error"]["message"]


@pytest.mark.behaviour("GERR-03")
@pytest.mark.parametrize("provider", ["anthropic", "google", "cohere"])
@pytest.mark.parametrize("body", [b"nonsense", b"[]", b'{"odd":1}'])
def test_a_success_that_cannot_be_read(way: Way, provider: str, body: bytes) -> None:
    way.upstream.say(body)
    found = way.at(provider).chat()
    assert (found.status, found.json["provider"]) == (502, provider)
    assert found.json["error"]["message"].startswith(f"{provider} error: ")


@pytest.mark.behaviour("GERR-04", "RSP-06")
def test_an_endpoint_that_the_provider_does_not_have(way: Way) -> None:
    found = way.at("anthropic", "/v1").post("/embeddings", {"model": "m", "input": "x"})
    _refused(found, "embed is not supported by anthropic", 500)
    assert found.headers["x-portkey-gateway-exception"] == "true"


@pytest.mark.behaviour("GERR-07")
@pytest.mark.parametrize("provider", ["openai", "bedrock", "vertex-ai"])
def test_a_chat_without_a_model(way: Way, provider: str) -> None:
    named = way.at(provider).named(
        aws_access_key_id="AKIA",
        aws_secret_access_key="s",
        aws_region="us-east-1",
        vertex_project_id="p",
        vertex_region="r",
    )
    found = named.post("/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
    assert found.status == 400, found.body
    assert "odel" in found.json["error"]["message"]


@pytest.mark.behaviour("RTY-10", "VAL-21")
def test_an_endpoint_that_is_not_there(way: Way) -> None:
    found = way.named(custom_host="http://127.0.0.1:9/v1").chat()
    assert (found.status, found.json["error"]["code"], found.json["provider"]) == (503, "connect", "openai")
    assert found.json["message"].startswith("openai error: ")


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n"])
def test_secrets_stay_out_of_errors_and_logs(way: Way, caplog: pytest.LogCaptureFixture, answer: bytes) -> None:
    """An endpoint may repeat what it was sent."""
    caplog.set_level(logging.DEBUG)
    said = {"error": {"message": f"Incorrect key {OWN}."}}
    for status in ("401 Unauthorized", "500 Oops"):
        way.upstream.say(said, status)
        found = way.chat()
        assert found.status == int(status[:3])
        assert OWN not in found.body.decode()
    way.upstream.say(answer + OWN.encode(), "200 OK")
    found = way.at("anthropic").chat()
    assert found.status == 502
    assert OWN not in found.body.decode()
    assert OWN not in caplog.text
    assert way.key not in caplog.text


@pytest.mark.behaviour("GERR-01", "VAL-21")
def test_errors_on_the_messages_route_are_anthropics(way: Way) -> None:
    way.upstream.say({"error": {"message": "Bad.", "type": "invalid_request_error"}}, "400 Bad Request")
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    found = way.post("/messages", body)
    assert (found.status, found.json["type"], found.json["error"]["type"]) == (400, "error", "invalid_request_error")
    assert "Bad." in found.json["error"]["message"]
    for refused in (
        way.named(provider="nobody").post("/messages", body),
        way.raw("POST", "/messages", b"{"),
        way.named(config="{nonsense").post("/messages", body),
        way.named(nonsense="1").post("/messages", body),
        Client(way.url, None, headers={}).raw("POST", "/v1/messages", b"{}", check=False),
    ):
        assert refused.json["type"] == "error", refused.body
        assert set(refused.json["error"]) >= {"type", "message"}


def test_unknown_statuses_of_success(way: Way) -> None:
    way.upstream.say(chat_answer(), "201 Created")
    assert way.chat().status == 201
