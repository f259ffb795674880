"""Streams cross nodes: three servers on one PostgreSQL and one Valkey, of which only some drive runs."""

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from loomgate import clock
from loomgate.settings import Secret
from tests.support import sse
from tests.support.engines import Databases
from tests.support.eventually import eventually
from tests.support.server import Client, Server, serving
from tests.support.viewer import Viewer, ask, path_of

IDS = {"Loomgate-Event-Ids": "true"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture
def node(databases: Databases, redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts nodes of one cluster; keyword arguments are settings."""
    database = asyncio.run(databases.ready())
    shared: dict[str, Any] = {
        "database_url": Secret(database),
        "redis_url": Secret(redis_url),
        "redis_prefix": f"test-{secrets.token_hex(4)}",
        "seal_key": Secret("00" * 32),
        "poll_interval_seconds": 5.0,  # who finds a run sooner was told of it
    }
    with ExitStack() as stack:
        made = 0

        def start(**changes: Any) -> Server:
            nonlocal made
            made += 1
            return stack.enter_context(serving(tmp_path / f"node{made}", **(shared | changes)))

        yield start
    asyncio.run(databases.drop(database))


def _at(server: Server, client: Client) -> Client:
    """The same client at another node."""
    return Client(server.url, client.key)


@pytest.mark.behaviour("SSE-40", "SSE-26")
def test_a_client_sees_a_run_that_another_node_drives_and_goes_on_at_a_third(node: Callable[..., Server]) -> None:
    front, third = node(drive_runs=False), node(drive_runs=False)
    worker = node()
    client = front.client()
    path, body = ask(client, "/say One\n/wait 20\n/say two\n/wait 20\n/say three")
    with Viewer(client, "POST", path, body, IDS) as viewer:
        run = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
        before = viewer.body
        assert _engine(front).active == 0
        assert _engine(worker).active == 1
        last = sse.parse_with_ids(before)[-1][0]
        stream = path_of(run) + "/stream"
        with Viewer(_at(third, client), "GET", stream, headers={"Last-Event-ID": last}) as back, _time_passes():
            after = back.rest()
            whole = viewer.rest()
    events = sse.check_stream(before + after, ids=True)
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    assert dict(events)["thread.message.completed"]["content"][0]["text"]["value"] == "One\ntwo\nthree"
    assert before + after == whole, "the same events under the same ids, wherever one looks on"


@pytest.mark.behaviour("SSE-42", "RUN-40")
def test_outputs_may_be_submitted_to_any_node(node: Callable[..., Server]) -> None:
    front, worker, third = node(drive_runs=False), node(), node(drive_runs=False)
    client = worker.client()
    path, body = ask(_at(front, client), "/say Wait\n/call f {}\n/turn\n/say Done.", tools=[TOOL])
    with Viewer(_at(front, client), "POST", path, body) as viewer:
        assert sse.names(viewer.events())[-2:] == ["thread.run.requires_action", "done"]
    run = client.get(path)["data"][0]
    (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    outputs = {"tool_outputs": [{"tool_call_id": call["id"], "output": "here"}], "stream": True}
    with Viewer(_at(third, client), "POST", path_of(run) + "/submit_tool_outputs", outputs) as viewer:
        assert sse.names(viewer.events()) == sse.SEQUENCES["SSE-42/2"]


@pytest.mark.behaviour("RUN-51", "RUN-54")
def test_a_cancellation_reaches_the_node_that_drives_the_run(node: Callable[..., Server]) -> None:
    front, worker = node(drive_runs=False), node()
    client = front.client()
    with Viewer(client, "POST", *ask(client, "/say One\n/wait 61\n/say two")) as viewer:
        run = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
        before = clock.monotonic()
        assert client.post(path_of(run) + "/cancel")["status"] == "cancelling"
        names = sse.names(viewer.events())
        assert clock.monotonic() - before < 3, "nobody waited for a renewal or a poll"
    assert "thread.run.cancelling" in names
    assert names[-2:] == ["thread.run.cancelled", "done"]
    eventually(lambda: _engine(worker).active == 0)


def test_who_comes_late_gets_the_words_that_only_the_other_node_has(node: Callable[..., Server]) -> None:
    front, worker = node(drive_runs=False), node()
    client = worker.client()
    with Viewer(client, "POST", *ask(client, "/say One\n/wait 20\n/say two")) as viewer:
        run = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
        path = path_of(run) + "/stream"
        with Viewer(_at(front, client), "GET", path, headers={"Last-Event-ID": "0-7-0"}) as late:
            assert "present state" in late.comment()
            shown = late.until("thread.message.in_progress")
            assert "".join(part["text"]["value"] for part in shown["content"]).startswith("One")
            with _time_passes():
                parsed = sse.parse_with_ids(late.rest())
    assert parsed[-1][1].name == "done"
    deltas = [sse.schema.parse_json(e.data) for _, e in parsed if e.name == "thread.message.delta"]
    more = "".join(part["text"]["value"] for delta in deltas for part in delta["delta"]["content"])
    assert "".join(part["text"]["value"] for part in shown["content"]) + more == "One\ntwo"


def test_a_node_that_stops_hands_its_runs_over_and_their_viewers_stay(node: Callable[..., Server]) -> None:
    front = node(drive_runs=False)
    leaving = node(drain_seconds=0.0)
    client = front.client()
    with Viewer(client, "POST", *ask(client, "/say One\n/wait 20\n/say two")) as viewer:
        viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
        staying = node()
        leaving.stop()
        eventually(lambda: _engine(staying).active == 1)
        with _time_passes():
            events = viewer.events()
    assert sse.names(events)[-1] == "done"
    assert "error" not in sse.names(events)
    completed = dict(events)["thread.message.completed"]
    assert completed["content"][0]["text"]["value"] == "One\ntwo"


@contextmanager
def _time_passes() -> Iterator[None]:
    """Twenty seconds every tenth of one, for waits that begin on another node, nobody here knows when."""
    over = threading.Event()

    def advance() -> None:
        while not over.wait(0.1):
            clock.advance(20)

    thread = threading.Thread(target=advance)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _engine(server: Server) -> Any:
    return server.application.engine
