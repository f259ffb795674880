"""The thread lock (BEHAVIOUR 4.7)."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from loomgate import clock
from tests.api.driving import (
    ACTIVE,
    TERMINAL,
    TTL,
    F,
    Lives,
    again,
    error,
    eventually,
    load,
    path,
    settle,
    start,
    steps,
    submit,
    text_of,
    thread_messages,
    waiting,
    written,
)
from tests.support import sse
from tests.support.server import BETA, Client
from tests.support.upstream import ModelEndpoint

_HELLO = {"role": "user", "content": "Hello"}


@pytest.mark.behaviour("LOCK-01", "LOCK-02", "LOCK-03", "LOCK-04", "LOCK-05", "LOCK-11", "ERR-30")
@pytest.mark.parametrize("status", ACTIVE)
def test_an_active_run_locks_its_thread(lives: Lives, status: str) -> None:
    client, run = lives(status)
    thread, assistant = run["thread_id"], run["assistant_id"]
    before = thread_messages(client, run)
    taken = error(f"Thread {thread} already has an active run {run['id']}.")
    for role in ("user", "assistant"):
        refused = client.post(f"/threads/{thread}/messages", {"role": role, "content": "Hi"}, status=400)
        assert refused == error(f"Can't add messages to {thread} while a run {run['id']} is active.")
    for extra in ({}, {"additional_messages": [_HELLO]}, {"instructions": "Go."}):
        body = {"assistant_id": assistant, **extra}
        assert client.post(f"/threads/{thread}/runs", body, status=400) == taken
    streamed = json.dumps({"assistant_id": assistant, "stream": True}).encode()
    response = client.raw("POST", f"/v1/threads/{thread}/runs", streamed, BETA)
    assert response.headers["content-type"] == "application/json"
    assert (response.status, response.error) == (400, taken)
    assert thread_messages(client, run) == before
    assert len(client.get(f"/threads/{thread}/runs")["data"]) == 1
    lives.end(client, run)
    client.post(f"/threads/{thread}/messages", _HELLO)


@pytest.mark.behaviour("LOCK-01", "LOCK-10")
@pytest.mark.parametrize("status", TERMINAL)
def test_the_lock_ends_with_the_terminal_status(lives: Lives, status: str) -> None:
    client, run = lives(status)
    client.post(f"/threads/{run['thread_id']}/messages", _HELLO)
    assert settle(client, again(client, run["thread_id"]))["status"] == "completed"


@pytest.mark.behaviour("LOCK-10")
def test_whoever_sees_the_end_may_go_on_at_once(client: Client) -> None:
    assistant = client.assistant()["id"]
    thread = client.thread("/say Hi")["id"]
    for _ in range(20):
        body = json.dumps({"assistant_id": assistant, "stream": True}).encode()
        response = client.raw("POST", f"/v1/threads/{thread}/runs", body, BETA)
        assert sse.parse(response.body)[-2].name == "thread.run.completed"
        client.post(f"/threads/{thread}/messages", {"role": "user", "content": "/say Hi"})


def _many(client: Client, requests: list[tuple[str, dict[str, Any]]]) -> list[tuple[int, Any]]:
    def send(request: tuple[str, dict[str, Any]]) -> tuple[int, Any]:
        response = client.raw("POST", "/v1" + request[0], json.dumps(request[1]).encode())
        return response.status, response.error if response.status >= 400 else response.json

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(send, requests))


@pytest.mark.behaviour("LOCK-06", "LOCK-11")
@pytest.mark.parametrize("attempt", range(3))
def test_of_twenty_runs_at_once_exactly_one_is_created(client: Client, attempt: int) -> None:
    assistant = client.assistant(tools=[F])["id"]
    thread = client.thread("/call f")["id"]
    bodies = [
        {"assistant_id": assistant, "additional_messages": [{"role": "user", "content": f"/call f {number}"}]}
        for number in range(20)
    ]
    found = _many(client, [(f"/threads/{thread}/runs", body) for body in bodies])
    assert sorted(status for status, _ in found) == [200] + [400] * 19
    ((winner, run),) = [(number, body) for number, (status, body) in enumerate(found) if status == 200]
    for status, body in found:
        assert status == 200 or body == error(f"Thread {thread} already has an active run {run['id']}.")
    assert [one["id"] for one in client.get(f"/threads/{thread}/runs")["data"]] == [run["id"]]
    assert [text_of(message) for message in thread_messages(client, run)] == ["/call f", f"/call f {winner}"]
    assert attempt < 3


@pytest.mark.behaviour("LOCK-06")
def test_a_message_that_races_a_run(client: Client) -> None:
    """Either it comes first and the run sees it, or it is refused."""
    assistant = client.assistant(tools=[F])["id"]
    for _ in range(10):
        thread = client.thread("/call f")["id"]
        message = (f"/threads/{thread}/messages", {"role": "user", "content": '/call f "late"'})
        (added, said), (created, run) = _many(
            client, [message, (f"/threads/{thread}/runs", {"assistant_id": assistant})]
        )
        assert created == 200
        found = thread_messages(client, run)
        if added == 200:
            assert [one["id"] for one in found][1:] == [said["id"]]
            waits = settle(client, run)["required_action"]["submit_tool_outputs"]["tool_calls"]
            assert waits[0]["function"]["arguments"] == '"late"'
        else:
            assert said == error(f"Can't add messages to {thread} while a run {run['id']} is active.")
            assert len(found) == 1


@pytest.mark.behaviour("LOCK-07")
@pytest.mark.parametrize("status", ACTIVE)
def test_what_an_active_run_does_not_block(lives: Lives, status: str) -> None:
    client, run = lives(status)
    url = f"/threads/{run['thread_id']}"
    message = thread_messages(client, run)[0]
    for reading in ("", "/messages", f"/messages/{message['id']}", "/runs", f"/runs/{run['id']}"):
        client.get(url + reading)
    for step in steps(client, run):
        client.get(path(run, f"/steps/{step['id']}"))
    resources = {"code_interpreter": {"file_ids": []}}
    changed = client.post(url, {"metadata": {"a": "b"}, "tool_resources": resources})
    assert (changed["metadata"], changed["tool_resources"]) == ({"a": "b"}, resources)
    assert client.post(f"{url}/messages/{message['id']}", {"metadata": {"c": "d"}})["metadata"] == {"c": "d"}
    if status == "requires_action":
        submit(client, run)
    elif status in ("queued", "in_progress"):
        assert client.post(path(run, "/cancel"))["status"] == "cancelling"
    lives.end(client, run)


@pytest.mark.behaviour("LOCK-08")
def test_a_message_may_be_deleted_while_a_run_reads(standin: Client, endpoint: ModelEndpoint) -> None:
    run = start(standin, "/wait 30\n/say Hello.", model="stand-in")
    eventually(lambda: endpoint.requests)
    message = thread_messages(standin, run)[0]
    standin.delete(f"/threads/{run['thread_id']}/messages/{message['id']}")
    clock.advance(30)
    assert settle(standin, run)["status"] == "completed"
    assert [text_of(one) for one in thread_messages(standin, run)] == ["Hello."]


@pytest.mark.behaviour("LOCK-08")
def test_the_message_being_written_may_be_deleted(client: Client) -> None:
    run = start(client, "/say Hel\n/wait 30\n/say lo")
    (message,) = eventually(lambda: written(client, run))
    client.delete(f"/threads/{run['thread_id']}/messages/{message['id']}")
    clock.advance(30)
    assert settle(client, run)["status"] == "completed"
    assert written(client, run) == []


@pytest.mark.behaviour("LOCK-09")
@pytest.mark.parametrize("status", ACTIVE)
def test_a_thread_may_be_deleted_while_a_run_is_active(lives: Lives, status: str) -> None:
    client, run = lives(status)
    url = f"/threads/{run['thread_id']}"
    message = thread_messages(client, run)[0]
    assert client.delete(url) == {"id": run["thread_id"], "object": "thread.deleted", "deleted": True}
    clock.advance(TTL + 1)
    tails = ["", "/messages", f"/messages/{message['id']}", "/runs", f"/runs/{run['id']}", f"/runs/{run['id']}/steps"]
    for tail in tails:
        assert client.get(url + tail, status=404)["message"] == f"No thread found with id '{run['thread_id']}'."
    for tail, body in (("/cancel", {}), ("/submit_tool_outputs", {"tool_outputs": []}), ("", {"metadata": {}})):
        client.post(path(run, tail), body, status=404)


@pytest.mark.behaviour("LOCK-09")
def test_deleting_the_thread_stops_the_model_and_ends_the_stream(standin: Client, endpoint: ModelEndpoint) -> None:
    thread = standin.thread("/say Hel\n/wait 500\n/say lo")["id"]
    body = json.dumps({"assistant_id": standin.assistant(model="stand-in")["id"], "stream": True}).encode()
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(standin.raw, "POST", f"/v1/threads/{thread}/runs", body, BETA)
        try:
            eventually(lambda: standin.get(f"/threads/{thread}/messages?limit=1")["data"][0]["role"] == "assistant")
            standin.delete(f"/threads/{thread}")
        except BaseException:
            clock.advance(TTL + 1)  # or else the stream would hold this test up
            raise
        events = sse.parse(streamed.result(10).body)
    assert events[-1].name == "done"
    assert events[-2].name == "error"
    assert not [event for event in events if event.name in ("thread.message.completed", "thread.run.completed")]
    eventually(endpoint.dropped.is_set)


@pytest.mark.behaviour("LOCK-01", "LOCK-10")
def test_threads_do_not_lock_each_other(client: Client) -> None:
    first, second = waiting(client), waiting(client)
    assert load(client, first)["status"] == load(client, second)["status"] == "requires_action"
