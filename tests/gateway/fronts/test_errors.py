"""Endpoints' errors as clients read them (GATEWAY section 8)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.gateway.fronts.errors import (
    anthropic_type,
    error_body,
    messages_error,
    messages_error_body,
)
from loomgate.providers.catalogue import CATALOGUE
from tests.providers.conformance.suite import ERRORS, Wire, dialect, scenario


def told(dialect: str, body: Any, status: int = 400) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = error_body("slug", status, raw, dialect)
    assert found["provider"] == "slug"
    assert set(found["error"]) == {"message", "type", "param", "code"}
    return found["error"]


@pytest.mark.behaviour("GERR-01")
@pytest.mark.parametrize("kind", ERRORS)
@scenario()
def test_every_vendors_words_reach_the_client(wire: Wire, kind: str) -> None:
    status, headers, body = wire.error(kind)
    row = CATALOGUE[wire.vendor]
    found = error_body(wire.vendor, status, body, row.dialect)
    words = dialect(wire).error(status, headers, body).message
    assert found["error"]["message"] == f"{wire.vendor} error: {words}"
    anthropic = messages_error_body(wire.vendor, status, body, row.dialect)
    assert anthropic["error"]["message"] == f"{wire.vendor} error: {words}"


@pytest.mark.behaviour("GERR-01", "GERR-02")
@pytest.mark.parametrize(
    ("dialect", "body", "type", "param", "code"),
    [
        ("openai", {"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}, "t", "p", "c"),
        ("openai", {"error": {"message": "m"}}, None, None, None),
        ("openai", {"error": "m"}, None, None, None),
        ("openai", {"message": "m", "type": "t"}, "t", None, None),
        ("openai", {"detail": "m"}, None, None, None),
        ("some-own-format", {"error": {"message": "m", "code": 7}}, None, None, 7),
        ("anthropic", {"type": "error", "error": {"type": "t", "message": "m", "code": 1}}, "t", None, None),
        ("gemini", {"error": {"code": 400, "message": "m", "status": "INVALID"}}, "INVALID", None, 400),
        ("gemini", [{"error": {"code": 400, "message": "m", "status": "INVALID"}}], "INVALID", None, 400),
        ("vertex-ai", {"error": {"code": 400, "message": "m", "status": "INVALID"}}, "INVALID", None, "INVALID"),
        ("cohere", {"message": "m", "type": "t"}, None, None, None),
        ("bedrock", {"message": "m", "__type": "t"}, None, None, None),
        ("bedrock", {"Message": "m"}, None, None, None),
    ],
)
def test_each_dialects_error(dialect: str, body: Any, type: Any, param: Any, code: Any) -> None:
    assert told(dialect, body) == {"message": "slug error: m", "type": type, "param": param, "code": code}


@pytest.mark.behaviour("GERR-09")
@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "vertex-ai", "cohere", "bedrock"])
def test_what_is_no_json_comes_back_as_json(dialect: str) -> None:
    page = "<html>502 Bad \xe9</html>"
    found = told(dialect, page.encode(), 502)
    said = f'Invalid response received from slug: {{"html-message":"{page}"}}'
    assert found == {"message": said, "type": None, "param": None, "code": None}
    assert told(dialect, b"") == {
        "message": 'Invalid response received from slug: {"html-message":""}',
        "type": None,
        "param": None,
        "code": None,
    }
    assert len(told(dialect, b"x" * 100_000)["message"]) < 5000
    assert told(dialect, {"what": 1})["message"] == 'Invalid response received from slug: {"what":1}'


def test_keys_are_masked() -> None:
    body = {"error": {"message": "Incorrect API key provided: sk-abcdefghijklmnopqrstuvwxyz"}}
    assert "abcdefgh" not in told("openai", body)["message"]
    assert "abcdefgh" not in told("openai", {"x": "sk-abcdefghijklmnopqrstuvwxyz"})["message"]


@given(
    body=st.binary(max_size=60)
    | st.recursive(st.none() | st.text(max_size=5), st.lists, max_leaves=4).map(json.dumps).map(str.encode)
)
def test_anything_is_an_error(body: bytes) -> None:
    for name in ("openai", "anthropic", "gemini", "vertex-ai", "cohere", "bedrock"):
        assert told(name, body)["message"]


@pytest.mark.parametrize(
    ("status", "type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (418, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (529, "overloaded_error"),
    ],
)
def test_anthropics_shape(status: int, type: str) -> None:
    assert messages_error(status, "m") == {"type": "error", "error": {"type": type, "message": "m"}}
    assert anthropic_type(type) == type


def test_our_kinds_in_anthropics_words() -> None:
    assert anthropic_type("rate_limit") == "rate_limit_error"
    assert anthropic_type("server_error") == "api_error"
    assert anthropic_type("cut") == "api_error"
