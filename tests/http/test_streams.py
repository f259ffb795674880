"""Streams as HTTP: headers, early flushes, keep-alive comments, leaving, joining late (BEHAVIOUR section 10)."""

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from loomgate import clock
from tests.support import sse
from tests.support.server import Client, Server


@contextmanager
def _opened(
    client: Client, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
) -> Iterator[http.client.HTTPResponse]:
    """A stream in the middle of which the test looks; closing it hangs up."""
    connection = http.client.HTTPConnection(urlsplit(client.url).netloc, timeout=20)
    given = {**client.headers, "Authorization": f"Bearer {client.key}", **(headers or {})}
    connection.request(method, client.prefix + path, None if body is None else json.dumps(body), given)
    response = connection.getresponse()
    try:
        assert response.status == 200, response.read()
        yield response
    finally:
        # Both: the response holds the socket's last reference.
        response.close()
        connection.close()


def _until(response: http.client.HTTPResponse, text: bytes) -> bytes:
    """What arrives up to and with the line that has ``text``."""
    found = b""
    while text not in found:
        line = response.readline()
        assert line, f"the stream ended before {text!r}: {found!r}"
        found += line
    return found


def _thread_run(client: Client, text: str, **fields: Any) -> dict[str, Any]:
    thread = {"messages": [{"role": "user", "content": text}]}
    return {"assistant_id": client.assistant()["id"], "thread": thread, "stream": True, **fields}


def _run_of(events: list[tuple[str, Any]]) -> tuple[str, str]:
    run = next(data for name, data in events if name.startswith("thread.run."))
    return run["thread_id"], run["id"]


def _settled(client: Client, path: str, status: str, wait: float = 0) -> None:
    """Ask for the run until it has ended, which it must do as ``status``.

    A model that waits ``wait`` seconds may not have begun to when time is moved, so it is moved more than once.
    """
    deadline = clock.monotonic() + 20
    attempt = 0
    while True:
        if attempt % 150 == 0 and attempt < 900:
            clock.advance(wait)
        attempt += 1
        run = client.get(path)
        if run["status"] not in ("queued", "in_progress", "cancelling") or clock.monotonic() > deadline:
            break
    assert run["status"] == status


@pytest.mark.behaviour("CONV-03", "SSE-01", "SSE-02", "SSE-40", "SSE-41", "SSE-54", "RUN-23", "HDR-20")
def test_a_streamed_run(client: Client) -> None:
    body = json.dumps(_thread_run(client, "Hello")).encode()
    response = client.raw("POST", "/v1/threads/runs", body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["openai-version"] == "2020-10-01"
    events = sse.check_stream(response.body)
    assert sse.names(events) == sse.SEQUENCES["SSE-41"]
    thread_id, _ = _run_of(events)
    more = json.dumps({"assistant_id": client.assistant()["id"], "stream": True}).encode()
    events = sse.check_stream(client.raw("POST", f"/v1/threads/{thread_id}/runs", more).body)
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]


@pytest.mark.behaviour("ERR-70", "LOCK-05")
def test_errors_before_the_run_are_plain_json(client: Client) -> None:
    for body in ({"assistant_id": "asst_unknown", "stream": True}, {"stream": True}, {"stream": "yes"}):
        response = client.raw("POST", "/v1/threads/runs", json.dumps(body).encode())
        assert response.status in (400, 404)
        assert response.headers["content-type"] == "application/json"
        assert response.error["message"]
    headers = {"Loomgate-Event-Ids": "maybe"}
    before = client.get("/threads")["data"]
    body = json.dumps(_thread_run(client, "Hello")).encode()
    assert "Loomgate-Event-Ids" in client.raw("POST", "/v1/threads/runs", body, headers).error["message"]
    assert client.get("/threads")["data"] == before


@pytest.mark.behaviour("SSE-08", "SSE-54")
def test_events_come_at_once_and_silence_is_filled(make_server: Callable[..., Server]) -> None:
    client = make_server(stream_keepalive_seconds=0.05).client()
    with _opened(client, "POST", "/threads/runs", _thread_run(client, "/wait 60\n/say done")) as response:
        assert b"event: thread.run.created" in _until(response, b"event: thread.run.in_progress")
        silence = _until(response, b": keep-alive") + _until(response, b": keep-alive")
        assert b"event: done" not in silence
        clock.advance(60)
        rest = _until(response, b"[DONE]")
        assert b"event: thread.run.completed" in rest
        assert response.read() == b"\n"


@pytest.mark.behaviour("SSE-09")
def test_a_run_goes_on_without_its_viewer(client: Client) -> None:
    with _opened(client, "POST", "/threads/runs", _thread_run(client, "/wait 60\n/say done")) as response:
        begun = _until(response, b"event: thread.run.in_progress") + response.readline()
        run = json.loads(begun.rpartition(b"data: ")[2])
    _settled(client, f"/threads/{run['thread_id']}/runs/{run['id']}", "completed", 60)


@pytest.mark.behaviour("SSE-09")
@pytest.mark.parametrize("asked_by", ["request", "settings"])
def test_a_viewer_can_take_its_run_with_it(make_server: Callable[..., Server], asked_by: str) -> None:
    client = make_server(cancel_on_disconnect=asked_by == "settings").client()
    options = {"loomgate": {"cancel_on_disconnect": True}} if asked_by == "request" else {}
    body = _thread_run(client, "/wait 60\n/say done", **options)
    with _opened(client, "POST", "/threads/runs", body) as response:
        begun = _until(response, b"event: thread.run.in_progress") + response.readline()
        run = json.loads(begun.rpartition(b"data: ")[2])
        path = f"/threads/{run['thread_id']}/runs/{run['id']}"
        with _opened(client, "GET", path + "/stream") as other:
            _until(other, b"event: thread.run.in_progress")
        assert client.get(path)["status"] == "in_progress"  # a later viewer is only a viewer
    _settled(client, path, "cancelled")


def test_joining_late_and_again(client: Client) -> None:
    with _opened(client, "POST", "/threads/runs", _thread_run(client, "/wait 60\n/say one two three")) as response:
        begun = _until(response, b"event: thread.run.in_progress") + response.readline()
        run = json.loads(begun.rpartition(b"data: ")[2])
        path = f"/threads/{run['thread_id']}/runs/{run['id']}/stream"
        with _opened(client, "GET", path) as late:
            first = _until(late, b"event: thread.run.in_progress")
            assert first.startswith(b"id: ")
            assert b"event: thread.run.created" in first
            _settled(client, path.removesuffix("/stream"), "completed", 60)
            whole = first + late.read()
    events = sse.parse_with_ids(whole)
    assert sse.names([event for _, event in events])[-1] == "done"
    ids = [id for id, _ in events]
    assert len(set(ids)) == len(ids)
    for again in (
        client.raw("GET", f"/v1{path}", headers={"Last-Event-ID": ids[3]}),
        client.raw("GET", f"/v1{path}?last_event_id={ids[3]}"),
    ):
        assert sse.parse_with_ids(again.body) == events[4:]
    assert sse.parse_with_ids(client.raw("GET", f"/v1{path}").body) == events
    assert client.raw("HEAD", f"/v1{path}", check=False).body == b""
    client.get(path.replace(run["id"], "run_x"), status=404)


@pytest.mark.behaviour("SSE-26")
def test_a_late_viewer_misses_nothing_of_a_long_answer(client: Client) -> None:
    words = " ".join(f"word{n}" for n in range(500))
    body = json.dumps(_thread_run(client, "/say " + words)).encode()
    first = client.raw("POST", "/v1/threads/runs", body, {"Loomgate-Event-Ids": "true"})
    run = _run_of(sse.check_stream(first.body, ids=True))
    late = client.raw("GET", f"/v1/threads/{run[0]}/runs/{run[1]}/stream")
    assert late.body == first.body
    assert len(sse.parse_with_ids(late.body)) > 500


def test_ids_on_request(client: Client) -> None:
    body = json.dumps(_thread_run(client, "Hello")).encode()
    response = client.raw("POST", "/v1/threads/runs", body, {"Loomgate-Event-Ids": "true"})
    events = sse.parse_with_ids(response.body)
    assert sse.names([event for _, event in events]) == sse.SEQUENCES["SSE-41"]


@pytest.mark.behaviour("HDR-22")
def test_pollers_are_told_when_to_come_back(make_server: Callable[..., Server], client: Client) -> None:
    body = {**_thread_run(client, "/wait 60\n/say done"), "stream": False}
    run = client.post("/threads/runs", body)
    path = f"/threads/{run['thread_id']}/runs/{run['id']}"
    assert client.raw("GET", f"/v1{path}").headers["openai-poll-after-ms"] == "200"
    _settled(client, path, "completed", 60)
    assert "openai-poll-after-ms" not in client.raw("GET", f"/v1{path}").headers
    silent = make_server(poll_after_ms=0).client()
    body["assistant_id"] = silent.assistant()["id"]
    run = silent.post("/threads/runs", body)
    path = f"/threads/{run['thread_id']}/runs/{run['id']}"
    assert "openai-poll-after-ms" not in silent.raw("GET", f"/v1{path}").headers


def test_a_client_that_leaves_before_its_body_arrives(server: Server, client: Client) -> None:
    host, port = urlsplit(server.url).netloc.split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/threads HTTP/1.1\r\nHost: {host}\r\nOpenAI-Beta: assistants=v2\r\nContent-Length: 100\r\n"
        connection.sendall(f"{head}Authorization: Bearer {client.key}\r\n\r\n{{".encode())
    assert client.get("/threads")["data"] == []
