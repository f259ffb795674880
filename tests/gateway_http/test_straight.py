"""Clients that keep their connections: each request is answered as the first was, until something has changed.

What must live here: what a connection may remember of its client, and what it must not. What must not: the way of a
request that is the first of its connection (the other files of this folder).
"""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from loomgate.http.protocol import Cycle, Protocol
from loomgate.http.straight import Straight
from tests.gateway_http.caller import EVENTS, Caller, chat, openai_event, part
from tests.gateway_http.test_together import virtual_key
from tests.support.eventually import eventually
from tests.support.peer import Peer, answer
from tests.support.peer import Server as Endpoint
from tests.support.server import Server

Start = Callable[[Callable[[Peer], Awaitable[None]]], Endpoint]
SECRET = "sk-vendor-0123456789"
JSON = "Content-Type: application/json"
OURS = {"x-portkey-trace-id", "x-request-id", "date"}


@pytest.fixture(autouse=True)
def taken(gateway: Server, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request that might go straight did. A task looks after those that take a tenth of a second."""
    monkeypatch.setattr(gateway.application.straight.patience, "seconds", 0.1)
    found: list[bool] = []
    take = Straight.take

    def noted(self: Straight, protocol: Protocol, cycle: Cycle) -> bool:
        found.append(take(self, protocol, cycle))
        return found[-1]

    monkeypatch.setattr(Straight, "take", noted)
    return found


class Kept:
    """A client on one connection."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        self._headers = {"content-type": "application/json", **headers}

    def ask(self, body: Any = None, **more: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a chat."""
        data = body if isinstance(body, bytes) else json.dumps(chat() if body is None else body).encode()
        self._connection.request("POST", "/v1/chat/completions", data, {**self._headers, **more})
        found = self._connection.getresponse()
        return found.status, {name.lower(): value for name, value in found.getheaders()}, found.read()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Client:
    """A workspace with a virtual key, and a connection that names it."""

    def __init__(self, gateway: Server, upstream: Endpoint, **limits: Any) -> None:
        self.workspace = f"straight-{upstream.port}"
        self.admin = gateway.admin(self.workspace)
        if limits:
            body = {"name": "x", "provider": "openai", "key": SECRET, "custom_host": upstream.url, **limits}
            self.slug = self.admin.post("/virtual-keys", body)["slug"]
        else:
            self.slug = virtual_key(self.admin, upstream, SECRET)
        self.key = gateway.new_key(self.workspace)
        self.caller = Caller(gateway.url, self.key)
        self.headers = {"x-portkey-api-key": self.key, "x-portkey-virtual-key": self.slug}
        self.kept = Kept(gateway.url, self.headers)


@pytest.fixture
def client(gateway: Server, endpoint: Start) -> Iterator[Callable[..., Client]]:
    """Makes a client of an endpoint that does what a function does with each connection."""
    made: list[Client] = []

    def make(play: Callable[[Peer], Awaitable[None]], **limits: Any) -> Client:
        made.append(Client(gateway, endpoint(play), **limits))
        return made[-1]

    yield make
    for one in made:
        one.kept.close()


async def echo(peer: Peer) -> None:
    """Answers with what was asked."""
    while (request := await peer.request()) is not None:
        await peer.say(answer(b'{"asked":' + request.body + b"}", "200 OK", JSON, "x-kept: yes", "set-cookie: a=b"))


def test_each_request_of_a_connection_gets_its_own_answer_and_record(client: Any, taken: list[bool]) -> None:
    one = client(echo)
    found = [one.kept.ask(chat(user="u" * number)) for number in range(8)]
    assert taken == [False, *[True] * 7]
    for number, (status, _, body) in enumerate(found):
        assert status == 200
        assert json.loads(body) == {"asked": chat(user="u" * number)}
    heads = [{name: value for name, value in head.items() if name not in OURS} for _, head, _ in found]
    lengths = [int(head.pop("content-length")) for head in heads]
    assert lengths == [len(body) for _, _, body in found]
    assert heads == heads[:1] * 8
    assert heads[0]["x-kept"] == "yes"
    assert heads[0]["x-portkey-provider"] == "openai"
    assert heads[0]["x-portkey-last-used-option-index"] == "config"
    assert "set-cookie" not in heads[0]
    ids = {head[name] for _, head, _ in found for name in ("x-request-id", "x-portkey-trace-id")}
    assert len(ids) == 16
    log = [one.admin.get(f"/logs/{record['_id']}") for record in one.caller.log(8)]
    assert [record["request"]["body"]["user"] for record in log] == ["u" * number for number in reversed(range(8))]
    for record in log:
        assert record["response"]["body"] == {"asked": record["request"]["body"]}
        assert record["metrics"]["virtual_key"] == one.slug
        assert record["request"]["headers"]["content-length"] == str(len(json.dumps(record["request"]["body"])))
        assert [attempt["status"] for attempt in record["loomgate"]["attempts"]] == [200]
    assert one.key not in json.dumps(log)


def test_other_headers_are_read_anew(client: Any, taken: list[bool]) -> None:
    one = client(echo)
    one.kept.ask()
    for number in range(3):
        trace = f"trace-{number}"
        assert one.kept.ask(**{"x-portkey-trace-id": trace})[1]["x-portkey-trace-id"] == trace
    status, _, body = one.kept.ask(**{"x-portkey-virtual-key": "nobody"})
    assert (status, json.loads(body)["error"]["code"]) == (400, "unknown_provider")
    status, _, body = one.kept.ask(**{"x-portkey-api-key": "lg-wrong"})
    assert status == 401
    assert [one.kept.ask()[0] for _ in range(2)] == [200] * 2
    assert taken == [*[False] * 7, True]


def test_what_is_taken_away_is_gone_at_once(client: Any) -> None:
    one = client(echo)
    assert [one.kept.ask()[0] for _ in range(3)] == [200] * 3
    one.admin.put(f"/virtual-keys/{one.slug}", {"key": "sk-another-0123456789"})
    assert one.kept.ask()[0] == 200
    one.admin.delete(f"/virtual-keys/{one.slug}")
    status, _, body = one.kept.ask()
    assert (status, json.loads(body)["error"]["code"]) == (400, "unknown_provider")


def test_a_new_secret_is_sent_from_the_next_request_on(client: Any) -> None:
    async def tell(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            await peer.say(answer(json.dumps(request.headers["authorization"]).encode(), "200 OK", JSON))

    one = client(tell)
    assert [one.kept.ask()[2] for _ in range(3)] == [f'"Bearer {SECRET}"'.encode()] * 3
    one.admin.put(f"/virtual-keys/{one.slug}", {"key": "sk-another-0123456789"})
    assert one.kept.ask()[2] == b'"Bearer sk-another-0123456789"'


def test_a_revoked_key_is_refused_after_its_two_seconds(client: Any, gateway: Server) -> None:
    one = client(echo)
    one.kept.ask()
    rows = gateway.run(gateway.store.keys.list())
    (key,) = [row.id for row in rows if row.workspace == one.workspace and row.role == "user"]
    gateway.run(gateway.store.keys.revoke(key))
    eventually(lambda: one.kept.ask()[0] == 401)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (answer(b'{"error":{"message":"slow down"}}', "429 Too Many Requests", JSON, "Retry-After: 7"), 429),
        (answer(b'{"error":{"message":"broken"}}', "500 Internal Server Error", JSON), 500),
        (answer(b"", "204 No Content"), 204),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 300000\r\n\r\n" + b"[" * 300_000, 200),
        (EVENTS + part(openai_event("Once")) + b"0\r\n\r\n", 200),
    ],
)
def test_other_answers_are_as_on_a_connection_of_their_own(
    client: Any, taken: list[bool], said: bytes, status: int
) -> None:
    async def play(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            if b'"user": "other"' not in request.body:
                await peer.say(answer(b"{}", "200 OK", JSON))
                continue
            await peer.say(said)
            if said.endswith(b"\r\n\r\n") and b"chunked" in said and b"\r\n0\r\n" not in said:
                await asyncio.sleep(0.15)  # the rest takes its time
                await peer.say(b"2\r\n{}\r\n0\r\n\r\n")

    one = client(play)
    one.kept.ask()
    body = chat(user="other")
    straight = one.kept.ask(body)
    assert taken == [False, True]
    first = Kept(one.caller.url, one.headers | {"x-portkey-metadata": "{}", "connection": "close"})
    alone = first.ask(body)
    first.close()
    assert straight[0] == alone[0] == status
    assert straight[2] == alone[2]
    for name in (*OURS, "connection"):
        straight[1].pop(name, None)
        alone[1].pop(name, None)
    assert straight[1] == alone[1]
    assert one.kept.ask()[0] == 200
    # One record each, whichever way it went.
    assert [r["response"]["status"] for r in one.caller.log(4)] == [200, status, status, 200]


def test_a_client_that_leaves_an_answer_that_has_not_begun_ends_the_call(client: Any, taken: list[bool]) -> None:
    left = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"{}", "200 OK", JSON))
        if await peer.request() is not None:
            await peer.gone()
            left.set()

    for wait in (0.0, 0.3):  # before and after a task looks after it
        one = client(play)
        left.clear()
        one.kept.ask()
        one.kept._connection.request("POST", "/v1/chat/completions", json.dumps(chat()), one.kept._headers)
        eventually(lambda: taken[-1])
        if wait:
            threading.Event().wait(wait)
        one.kept.close()
        eventually(left.is_set)
        assert [record["response"]["status"] for record in one.caller.log(2)] == [499, 200]


def test_a_kept_connection_that_the_endpoint_closes_is_replaced(client: Any, taken: list[bool]) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"%d" % peer.number, "200 OK", JSON))
        if peer.number == 1:
            await peer.request()  # and no answer

    one = client(play)
    assert [one.kept.ask()[2] for _ in range(2)] == [b"1", b"2"]
    assert taken == [False, True]


def test_requests_in_a_row_are_answered_in_their_order(client: Any, taken: list[bool]) -> None:
    one = client(echo)
    one.kept.ask()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in one.headers.items()]
    sent: list[bytes] = []
    for number in range(6):
        body = json.dumps(chat(user=f"number-{number}")).encode()
        sent.append("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)
    with socket.create_connection(("127.0.0.1", urlsplit(one.caller.url).port or 0), timeout=10) as opened:
        got = b""
        for data in (sent[0], b"".join(sent[1:])):
            opened.sendall(data)
            while got.count(b"number-") < (1 if data is sent[0] else 6):
                got += opened.recv(65536)
    places = [got.index(b"number-%d" % number) for number in range(6)]
    assert places == sorted(places)
    assert taken == [False, False, True]  # those after it wait for a task


def test_a_rate_counts_every_request_once(client: Any, taken: list[bool]) -> None:
    one = client(echo, rate_limits=[{"type": "requests", "unit": "rph", "value": 5}])
    assert [one.kept.ask()[0] for _ in range(7)] == [200] * 5 + [429] * 2
    assert taken[1:5] == [True] * 4


def test_bodies_that_the_endpoint_must_not_see_are_refused(client: Any, taken: list[bool]) -> None:
    one = client(echo)
    one.kept.ask()
    for body in (b"{", b"[]", b'{"model":"m","messages":["\xff"]}'):
        status, _, said = one.kept.ask(body)
        assert (status, json.loads(said)["error"]["code"]) == (400, "invalid_json"), body
    assert True not in taken
