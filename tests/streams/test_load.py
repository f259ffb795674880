"""Many viewers, slow viewers, viewers that leave: nobody waits for another, and nobody misses anything."""

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from loomgate import clock
from tests.support import sse
from tests.support.eventually import eventually
from tests.support.server import Client, Server
from tests.support.viewer import Viewer, path_of, streamed


@pytest.mark.behaviour("SSE-26", "SSE-40")
def test_a_hundred_streams_at_once(client: Client) -> None:
    assistant = client.assistant()["id"]

    def opened(n: int) -> Viewer:
        thread = {"messages": [{"role": "user", "content": f"/say Stream {n} begins\n/wait 60\n/say and ends {n}."}]}
        return Viewer(client, "POST", "/threads/runs", {"assistant_id": assistant, "thread": thread, "stream": True})

    with ThreadPoolExecutor(20) as pool:
        viewers = list(pool.map(opened, range(100)))
        for viewer in viewers:
            viewer.until("thread.message.delta")  # all of them are in the middle of their answer
        clock.advance(60)
        bodies = list(pool.map(Viewer.rest, viewers))
    for n, (viewer, body) in enumerate(zip(viewers, bodies, strict=True)):
        viewer.close()
        events = sse.check_stream(body)
        assert sse.names(events) == sse.SEQUENCES["SSE-41"]
        message = dict(events)["thread.message.completed"]
        assert message["content"][0]["text"]["value"] == f"Stream {n} begins\nand ends {n}."


@pytest.mark.behaviour("SSE-26", "SSE-09")
def test_a_slow_reader_holds_nobody_up_and_misses_nothing(client: Client) -> None:
    thread = client.thread("/repeat 3000 word")
    assistant = client.assistant()["id"]
    parts = urlsplit(client.url)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.settimeout(20)
        reader.connect((parts.hostname, parts.port))
        body = f'{{"assistant_id":"{assistant}","stream":true}}'
        reader.sendall(
            f"POST /v1/threads/{thread['id']}/runs HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Authorization: Bearer {client.key}\r\nOpenAI-Beta: assistants=v2\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        # It reads nothing yet; the run ends all the same, and others are served.
        runs = f"/threads/{thread['id']}/runs"
        eventually(lambda: (found := client.get(runs)["data"]) and found[0]["status"] == "completed")
        with streamed(client, "/say Hello") as other:
            assert sse.names(other.events()) == sse.SEQUENCES["SSE-40"]
        raw = b""
        while piece := reader.recv(65536):
            raw += piece
    head, _, chunked = raw.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    events = sse.check_stream(_unchunked(chunked))
    assert sum(name == "thread.message.delta" for name, _ in events) == 3000
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]


def _unchunked(data: bytes) -> bytes:
    found = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        if not (length := int(size, 16)):
            return found
        found, data = found + data[:length], data[length + 2 :]


@pytest.mark.behaviour("SSE-09", "RUN-40", "RUN-60")
def test_a_run_that_waits_outlives_its_viewer(client: Client) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    with streamed(client, "/say Wait\n/wait 60\n/call f {}\n/turn\n/say Done.", tools=[tool]) as viewer:
        run = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
    clock.advance(60)
    path = path_of(run)
    eventually(lambda: client.get(path)["status"] == "requires_action")
    waiting = client.get(path)
    (call,) = waiting["required_action"]["submit_tool_outputs"]["tool_calls"]
    outputs: list[Any] = [{"tool_call_id": call["id"], "output": "here I am"}]
    with Viewer(client, "POST", path + "/submit_tool_outputs", {"tool_outputs": outputs, "stream": True}) as viewer:
        assert sse.names(viewer.events()) == sse.SEQUENCES["SSE-42/2"]


@pytest.mark.behaviour("SSE-09")
def test_viewers_that_left_are_forgotten(server: Server, client: Client) -> None:
    """A viewer that hung up in the middle costs nothing afterwards: its channel has no viewer any more."""
    bus: Any = server.application.engine._bus  # type: ignore[union-attr]
    with streamed(client, "/say Wait\n/wait 60") as viewer:
        run = viewer.until("thread.run.in_progress")
        assert _viewers(bus, run["id"]) == 1
    eventually(lambda: _viewers(bus, run["id"]) == 0)
    client.post(path_of(run) + "/cancel")


def _viewers(bus: Any, run: str) -> int:
    if run not in bus._channels:
        return 0  # over Redis a node keeps nothing of a run without viewers
    viewers = bus._channels[run].viewers
    return viewers if isinstance(viewers, int) else len(viewers)
