"""Whatever is sent to the gateway, the answer is the endpoint's or a refusal that says why, and no secret gets out.

``LOOMGATE_PROPERTIES=long`` sends many more.
"""

# ruff: noqa: E501 - tables of samples

import contextlib
import http.client
import json
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loomgate.http import naming
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.provider_data import OPTION_HEADERS
from tests.gateway_http.caller import OWN, Caller, chat
from tests.support.peer import Peer, answer
from tests.support.peer import Server as Endpoint

# The server beside the test draws from the same `random` while hypothesis does.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
Start = Callable[[Callable[[Peer], Awaitable[None]]], Endpoint]
SECRET = "sk-secret-in-config-0123456789"
quick = settings(
    max_examples=1500 if os.environ.get("LOOMGATE_PROPERTIES") == "long" else 30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
HEADERS = sorted(
    {*naming._READERS, *naming._ELSEWHERE, *naming._IDLE, *OPTION_HEADERS}
    | {"forward-headers", "trace-id", "span-id", "parent-span-id", "unheard-of"}
)
PATHS = [row.path + "x" * row.path.endswith("/") for row in ENDPOINTS.values() if row.path and row.name != "realtime"]
PATHS += ["/proxy/a/b", "/nowhere"]

ODD_TEXT = st.sampled_from([
    "9" * 5000, "[" * 4000, '{"a":' * 3000, "null", "true", "[]", "{}", '"x"', "[1]", '{"a":1e999}', '["\\ud800"]', "NaN",
    "-1", "1.5", "@", "@x/y", "http://[", "http://a b", "//x", "%00", "٣", "host,content-length,transfer-encoding",
    "x-portkey-api-key,connection", "\t", '{"provider":"openai"', '[{"default.contains":5}]', "a" * 20_000, "é" * 100,
])  # fmt: skip
VALUES = st.one_of(
    ODD_TEXT.map(str.encode),
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
).map(lambda value: bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([2**70, "a\r\nb: c", "", "…"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def upstream(endpoint: Start) -> Endpoint:
    """Answers everything with an empty object."""

    async def play(peer: Peer) -> None:
        while (request := await peer.head()) is not None:
            size = request.headers.get("content-length", "0")
            assert size.isdecimal()
            assert "transfer-encoding" not in request.headers
            await peer.reader.readexactly(int(size))
            peer.requests.clear()
            await peer.say(answer(b"{}", "200 OK", "Content-Type: application/json"))

    return endpoint(play)


def send(
    caller: Caller, method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]]
) -> tuple[int, dict[str, str], bytes]:
    """One request as it is; fails if there is no answer within ten seconds."""
    connection = http.client.HTTPConnection(urlsplit(caller.url).netloc, timeout=10)
    try:
        connection.putrequest(method, "/v1" + path, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        found = connection.getresponse()
        return found.status, {name.lower(): value for name, value in found.getheaders()}, found.read()
    finally:
        connection.close()


def judge(found: tuple[int, dict[str, str], bytes], caplog: pytest.LogCaptureFixture, caller: Caller) -> dict[str, Any]:
    """The answer is a documented one: no error of the server's own, a message with every refusal, no secret anywhere."""
    status, headers, body = found
    broken = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert not broken, caplog.text
    assert b"The server had an error" not in body
    told: dict[str, Any] = {}
    if status >= 400 and body and headers.get("content-type", "").startswith("application/json"):
        told = json.loads(body)
        assert told["error"]["message"], body
        if status == 500:
            assert told["error"]["code"] == "unsupported_endpoint", body
    elif status >= 400 and body:
        assert (status, headers.get("connection")) == (400, "close"), found  # no HTTP, says the server that carries it
    for secret in (OWN, caller.key, SECRET):
        assert secret.encode() not in body, body
        assert secret not in caplog.text
    caplog.clear()
    return told


@quick
@given(data=st.data())
def test_no_header_breaks_the_gateway(
    caller: Caller, upstream: Endpoint, caplog: pytest.LogCaptureFixture, data: st.DataObject
) -> None:
    named = data.draw(st.dictionaries(st.sampled_from(HEADERS), VALUES, min_size=1, max_size=3))
    provider = data.draw(
        st.sampled_from(["openai", "anthropic", "bedrock", "azure-openai", "vertex-ai", "google", "cohere"])
    )
    given_ = {name.encode(): value.encode() for name, value in caller.headers(upstream.url, provider).items()}
    given_ |= {b"x-portkey-" + name.encode(): value for name, value in named.items()}
    given_[b"x-portkey-custom-host"] = upstream.url.encode()
    given_[b"content-type"] = b"application/json"
    path = data.draw(st.sampled_from(PATHS))
    body = json.dumps(chat(max_tokens=5, input="x", prompt="y", query="q", documents=["d"])).encode()
    told = judge(send(caller, "POST", path, body, list(given_.items())), caplog, caller)
    if told.get("error", {}).get("code") == "unsupported_header":
        assert "x-portkey-" in told["error"]["message"]


CONFIG: dict[str, Any] = {
    "strategy": {"mode": "fallback", "on_status_codes": [429]},
    "retry": {"attempts": 1, "on_status_codes": [500]},
    "cache": {"mode": "simple", "max_age": 60},
    "request_timeout": 5000,
    "targets": [
        {"provider": "openai", "api_key": SECRET, "override_params": {"model": "m"}, "weight": 0.5, "name": "a"},
        {
            "virtual_key": "none",
            "forward_headers": ["x-a"],
            "input_guardrails": [{"default.contains": {"words": ["a"]}}],
        },
    ],
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed in ``value``."""
    found = [at] if at else []
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        found += places(inner, (*at, key))
    return found


@quick
@given(
    changes=st.lists(st.tuples(st.sampled_from(places(CONFIG)), JSON), min_size=1, max_size=3),
    extra=st.sampled_from(
        [*OPTION_HEADERS.values(), "custom_host", "provider", "passthrough", "options", "before_request_hooks"]
    ),
    odd=JSON,
)
def test_no_config_breaks_the_gateway(
    caller: Caller, upstream: Endpoint, caplog: pytest.LogCaptureFixture, changes: Any, extra: str, odd: Any
) -> None:
    config = json.loads(json.dumps(CONFIG))
    for target in config["targets"]:
        target["custom_host"] = upstream.url
    config["targets"][0][extra] = odd
    for at, value in changes:
        here: Any = config
        with contextlib.suppress(LookupError, TypeError):  # another change was there before
            for key in at[:-1]:
                here = here[key]
            here[at[-1]] = value
    given_ = caller.headers("", "", config=json.dumps(config))
    headers = [(name.encode(), value.encode()) for name, value in given_.items()]
    body = json.dumps(chat()).encode()
    judge(
        send(caller, "POST", "/chat/completions", body, [*headers, (b"content-type", b"application/json")]),
        caplog,
        caller,
    )


BODIES = st.one_of(
    st.sampled_from([
        b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 50_000, b'{"a":' * 50_000, b'{"model":"m","model":5}',
        b'{"model":"\\ud800","messages":[]}', b'{"model":"m","temperature":NaN}', b'{"model":"m","n":' + b"9" * 5000 + b"}",
        b'{"model":"m","messages":' + b"[" * 900 + b"]" * 900 + b"}", b'{"stream":true}', b"--x\r\n\r\n--x--", b"\0" * 99,
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm', b'--x\r\nContent-Disposition: form-data; name="file"',
    ]),
    st.fixed_dictionaries({}, optional=dict.fromkeys(("model", "messages", "stream", "tools", "input", "prompt", "max_tokens", "response_format", "tool_choice", "stop", "system", "documents", "query", "voice", "n", "temperature", "stream_options"), JSON)).map(lambda fields: json.dumps(fields).encode()),
    st.lists(JSON, max_size=3).map(lambda parts: json.dumps({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": parts}]}).encode()),
    st.binary(max_size=50),
)  # fmt: skip
TYPES = [
    "application/json",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "text/plain",
    "audio/wav",
    "",
    "APPLICATION/JSON; charset=utf-16",
    "/;",
]


@quick
@given(
    body=BODIES,
    kind=st.sampled_from([*TYPES[:1] * 8, *TYPES]),
    path=st.sampled_from(PATHS),
    method=st.sampled_from(["POST", "POST", "POST", "PUT", "PATCH", "GET", "DELETE", "HEAD", "OPTIONS"]),
    provider=st.sampled_from(["openai", "anthropic", "google", "cohere", "bedrock", "vertex-ai", "nobody"]),
)
def test_no_body_breaks_the_gateway(
    caller: Caller,
    upstream: Endpoint,
    caplog: pytest.LogCaptureFixture,
    body: bytes,
    kind: str,
    path: str,
    method: str,
    provider: str,
) -> None:
    more = {"aws_access_key_id": "AKIA1", "aws_secret_access_key": SECRET, "aws_region": "us-east-1"}
    given_ = caller.headers(upstream.url, provider, **(more if provider == "bedrock" else {}))
    headers = [(name.encode(), value.encode()) for name, value in {**given_, "content-type": kind}.items()]
    judge(send(caller, method, path, body, headers), caplog, caller)


@quick
@given(
    tail=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    base=st.sampled_from([*PATHS, "/proxy/", "/", "/models/"]),
)
def test_no_path_breaks_the_gateway(
    caller: Caller, upstream: Endpoint, caplog: pytest.LogCaptureFixture, tail: str, base: str
) -> None:
    headers = [(name.encode(), value.encode()) for name, value in caller.headers(upstream.url).items()]
    headers.append((b"content-type", b"application/json"))
    judge(send(caller, "POST", base + tail, b"{}", headers), caplog, caller)
