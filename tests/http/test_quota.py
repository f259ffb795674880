"""Limits on the whole API: requests a minute and at a time, of a workspace and of a key."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from loomgate import clock
from loomgate.gateway.counters import Counters
from loomgate.http import quota
from loomgate.http.auth import Caller
from tests.support.eventually import eventually
from tests.support.server import Client, Response, Server

Make = Callable[..., Server]
_CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "/say Hello"}]}


@pytest.fixture(autouse=True)
def _early_in_a_minute() -> None:  # pyright: ignore[reportUnusedFunction]
    clock.advance(120.5 - clock.now() % 60)


def chat(client: Client, text: str = "/say Hello", **fields: Any) -> Response:
    body = _CHAT | {"messages": [{"role": "user", "content": text}]} | fields
    return client.raw("POST", "/v1/chat/completions", json.dumps(body).encode(), check=False)


def told(response: Response) -> list[str | None]:
    return [response.headers.get(f"x-ratelimit-{word}-requests") for word in ("limit", "remaining", "reset")]


def in_background(work: Callable[[], Any]) -> threading.Thread:
    made = threading.Thread(target=work, daemon=True)
    made.start()
    return made


def under_way(server: Server, name: str) -> int:
    door = server.application.quota
    assert door is not None
    return len(door._counters._places.get(name, ()))  # pyright: ignore[reportPrivateUsage]


@pytest.mark.behaviour("ERR-50")
def test_requests_a_minute_of_both_apis(make_server: Make) -> None:
    server = make_server(workspace_requests_per_minute=4)
    one, other = server.client("team"), server.client("team")
    first = one.raw("GET", "/v1/assistants")
    assert told(first)[:2] == ["4", "3"]
    assert chat(other).status == 200
    assert told(chat(one))[:2] == ["4", "1"]
    assert other.raw("GET", "/v1/assistants/asst_nothing").status == 404, "which counts as well"
    for refused in (one.raw("GET", "/v1/assistants"), chat(other)):
        assert refused.status == 429
        error = refused.json["error"]
        assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
        assert error["message"].startswith("Rate limit reached for workspace 'team': 4 requests a minute.")
        assert told(refused)[:2] == ["4", "0"]
        wait = int(refused.headers["retry-after"])
        assert 1 <= wait <= 120
        assert refused.headers["x-request-id"]
    assert server.client("others").raw("GET", "/v1/assistants").status == 200
    # Anthropic's clients are told in their form.
    body = json.dumps({**_CHAT, "max_tokens": 5}).encode()
    theirs = one.raw("POST", "/v1/messages", body, check=False)
    assert (theirs.status, theirs.json["error"]["type"]) == (429, "rate_limit_error")
    clock.advance(wait)
    assert chat(one).status == 200


def test_a_key_has_a_limit_of_its_own(make_server: Make) -> None:
    server = make_server(workspace_requests_per_minute=100, key_requests_per_minute=2)
    one, other = server.client("team"), server.client("team")
    assert [told(chat(one))[:2] for _ in range(2)] == [["2", "1"], ["2", "0"]]
    refused = chat(one)
    assert (refused.status, refused.json["error"]["message"].partition(":")[0]) == (
        429,
        "Rate limit reached for this API key",
    )
    assert chat(other).status == 200
    # What a limit of one key refused was no request of the workspace: three of its hundred are used.
    assert server.application.quota is not None
    counters = server.application.quota._counters  # pyright: ignore[reportPrivateUsage]
    assert counters._windows["workspace:team"].count == 3  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/threads/runs"])
def test_streams_count_while_they_are_open(make_server: Make, path: str) -> None:
    server = make_server(key_concurrency=2)
    client = server.client("team")
    name = f"key:{server.run(server.store.keys.holder(client.key or '')).id}"  # type: ignore[union-attr]
    said = {"role": "user", "content": "/say Hello\n/wait 5000\n/say again"}
    body: dict[str, Any] = {"model": "scripted", "messages": [said], "stream": True}
    if path.endswith("runs"):
        assistant = client.assistant()
        body = {"assistant_id": assistant["id"], "thread": {"messages": [said]}, "stream": True}
    answers: list[Response] = []
    streams = [
        in_background(lambda: answers.append(client.raw("POST", path, json.dumps(body).encode()))) for _ in range(2)
    ]
    eventually(lambda: under_way(server, name) == 2)
    refused = client.raw("GET", "/v1/assistants")
    assert (refused.status, refused.headers["retry-after"], told(refused)) == (429, "1", ["2", "0", "1s"])
    assert "2 requests at a time" in refused.error["message"]
    assert server.client("team").raw("GET", "/v1/assistants").status == 200, "another key"
    clock.advance(6000)
    for stream in streams:
        stream.join(10)
    eventually(lambda: under_way(server, name) == 0)
    assert [answer.status for answer in answers] == [200, 200]
    assert client.raw("GET", "/v1/assistants").status == 200


def test_a_client_that_leaves_is_gone(make_server: Make) -> None:
    import http.client
    from urllib.parse import urlsplit

    server = make_server(workspace_concurrency=1)
    client = server.client("team")
    parts = urlsplit(server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    said = {"role": "user", "content": "/say Hello\n/wait 5000\n/say again"}
    connection.request(
        "POST",
        "/v1/chat/completions",
        json.dumps({"model": "scripted", "messages": [said], "stream": True}),
        {"Authorization": f"Bearer {client.key}", "Content-Type": "application/json"},
    )
    answer = connection.getresponse()
    assert answer.read(5) == b"data:"
    assert client.raw("GET", "/v1/assistants").status == 429
    answer.close()
    connection.close()
    eventually(lambda: client.raw("GET", "/v1/assistants").status == 200)


def test_a_websocket_is_refused_before_it_opens(make_server: Make) -> None:
    server = make_server(workspace_requests_per_minute=1)
    client = server.client("team")
    assert client.raw("GET", "/v1/assistants").status == 200
    headers = {"Authorization": f"Bearer {client.key}"}
    url = server.url.replace("http", "ws", 1) + "/v1/realtime?model=m"
    with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=headers, proxy=None):
        pass
    assert refused.value.response.status_code == 429
    assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"


def test_probes_do_not_count_nor_do_strangers(make_server: Make) -> None:
    server = make_server(workspace_requests_per_minute=1, workspace_concurrency=1)
    client = server.client("team")
    nobody = Client(server.url)
    for _ in range(3):
        assert nobody.raw("GET", "/healthz").status == 200
        assert nobody.raw("GET", "/readyz").status == 200
        assert client.raw("GET", "/metrics", check=False).status == 200
        assert nobody.raw("GET", "/v1/assistants").status == 401
    assert client.raw("GET", "/v1/assistants").status == 200


@pytest.mark.anyio
async def test_what_an_endpoint_says_of_its_limits_is_not_passed_on() -> None:
    door = quota.Quota(Counters(), (5, 0), (0, 0))
    sent: list[Any] = []

    async def answer(scope: Any, _: Any, send: Any) -> None:
        await door.enter(scope, Caller("team"))
        headers = [(b"x-ratelimit-limit-requests", b"9999"), (b"x-ratelimit-limit-tokens", b"7")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    await door.surround(answer, {"type": "http"}, receive, send)
    assert sorted(sent[0]["headers"])[:3] == [
        (b"x-ratelimit-limit-requests", b"5"),
        (b"x-ratelimit-limit-tokens", b"7"),
        (b"x-ratelimit-remaining-requests", b"4"),
    ]


def test_without_limits_nothing_is_told(server: Server, client: Client) -> None:
    assert server.application.quota is None
    assert told(chat(client)) == [None, None, None]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0ms"), (0.1201, "121ms"), (1, "1s"), (8.64, "8.64s"), (59.999, "1m0s"), (90, "1m30s"), (119.5, "1m59.5s")],
)
def test_times_are_told_as_openai_does(seconds: float, shown: str) -> None:
    assert quota._span(seconds) == shown  # pyright: ignore[reportPrivateUsage]
