"""What a run shows in each status, and how it gets there (BEHAVIOUR 4.2, 4.3)."""

from collections.abc import Callable
from typing import Any

import pytest

from loomgate import clock
from tests.api.driving import (
    ACTIVE,
    CALL,
    SETTLED,
    TERMINAL,
    TTL,
    F,
    Lives,
    again,
    calls,
    documented,
    error,
    eventually,
    load,
    path,
    play,
    settle,
    start,
    steps,
    stream,
    submit,
    text_of,
    waiting,
    written,
)
from tests.support.server import Client, Server

_TIMES = ("started_at", "expires_at", "cancelled_at", "failed_at", "completed_at")
_DETAILS = ("required_action", "last_error", "incomplete_details", "usage")
_TTL_MAX = 86400

# RUN-33: which of these fields are set in a status; every other one is null. `started_at` is a run's that started.
_SET: dict[str, set[str]] = {
    "queued": {"expires_at"},
    "in_progress": {"started_at", "expires_at"},
    "requires_action": {"started_at", "expires_at", "required_action"},
    "cancelling": {"expires_at"},
    "cancelled": {"started_at", "cancelled_at", "usage"},
    "failed": {"started_at", "failed_at", "last_error", "usage"},
    "completed": {"started_at", "completed_at", "usage"},
    "incomplete": {"started_at", "completed_at", "incomplete_details", "usage"},
    "expired": {"started_at", "expires_at", "usage"},
}


@pytest.mark.behaviour("RUN-30", "RUN-33", "RUN-36")
@pytest.mark.parametrize("status", _SET)
def test_the_fields_of_each_status(lives: Lives, status: str) -> None:
    began = clock.timestamp()
    client, run = lives(status)
    assert {name for name in (*_TIMES, *_DETAILS) if run[name] is not None} == _SET[status]
    for name in ("started_at", "cancelled_at", "failed_at", "completed_at"):
        assert run[name] is None or began <= run[name] <= clock.timestamp()
    if run["expires_at"] is not None:
        assert run["expires_at"] == run["created_at"] + TTL
    assert load(client, run) == run
    lives.end(client, run)


@pytest.mark.behaviour("RUN-30")
def test_the_nine_statuses_are_all_there_are() -> None:
    assert {*ACTIVE, *TERMINAL} == set(_SET) == documented("RunObject", "status")


@pytest.mark.behaviour("RUN-33")
def test_a_cancelling_and_a_cancelled_run_keep_when_they_started(client: Client) -> None:
    run = waiting(client)
    cancelling = client.post(path(run, "/cancel"))
    assert cancelling["status"] == "cancelling"
    kept = ("started_at", "expires_at")
    assert {name: cancelling[name] for name in kept} == {name: run[name] for name in kept}
    assert (cancelling["required_action"], cancelling["cancelled_at"]) == (None, None)
    assert settle(client, run)["started_at"] == run["started_at"]


@pytest.mark.behaviour("RUN-33")
def test_a_run_that_is_cancelled_in_the_queue_never_started(lives: Lives) -> None:
    client, run = lives("cancelling")
    assert run["started_at"] is None
    lives.end(client, run)


# RUN-31, row by row: a script, what the client does when the run waits, and the statuses that come by.
_ENDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "completed": ("/say Hi", {}, ["queued", "in_progress", "completed"]),
    "incomplete": ("/repeat 300 w", {"max_completion_tokens": 256}, ["queued", "in_progress", "incomplete"]),
    "failed": ("/error 400", {}, ["queued", "in_progress", "failed"]),
    "requires_action": (CALL, {"tools": [F]}, ["queued", "in_progress", "requires_action"]),
}


@pytest.mark.behaviour("RUN-31", "RUN-32")
@pytest.mark.parametrize("end", _ENDS)
def test_the_statuses_that_a_run_passes(client: Client, end: str) -> None:
    script, fields, expected = _ENDS[end]
    thread = client.thread(script)
    found = stream(client, f"/threads/{thread['id']}/runs", {"assistant_id": client.assistant()["id"], **fields})
    runs = [data for name, data in found if data["object"] == "thread.run"]
    # The first two are the same moment: created, and queued.
    assert [run["status"] for run in runs] == ["queued", *expected]
    if end == "requires_action":
        outputs = [{"tool_call_id": calls(runs[-1])[0]["id"], "output": "out"}]
        url = path(runs[-1], "/submit_tool_outputs")
        found = stream(client, url, {"tool_outputs": outputs})
        runs = [data for name, data in found if data["object"] == "thread.run"]
        assert [run["status"] for run in runs] == ["queued", "in_progress", "completed"]


@pytest.mark.behaviour("RUN-31", "ERR-31")
@pytest.mark.parametrize("status", [*ACTIVE, *TERMINAL])
def test_only_the_documented_verbs_move_a_run(lives: Lives, status: str) -> None:
    """What a client can do to a run in any status either is a documented transition or changes nothing."""
    client, run = lives(status)
    refusals = {
        "/cancel": ({}, f"Cannot cancel run with status '{status}'."),
        "/submit_tool_outputs": (
            {"tool_outputs": [{"tool_call_id": "call_x", "output": ""}]},
            f'Runs in status "{status}" do not accept tool outputs.',
        ),
        "": ({"metadata": {"a": "b"}}, f"Cannot update run with status '{status}'."),
    }
    if status in ("queued", "in_progress", "requires_action"):
        del refusals["/cancel"]  # a documented transition
    if status == "requires_action":
        del refusals["/submit_tool_outputs"]
    if status in TERMINAL:
        del refusals[""]
    for tail, (body, message) in refusals.items():
        assert client.post(path(run, tail), body, status=400) == error(message)
    assert load(client, run) == run
    lives.end(client, run)


@pytest.mark.behaviour("RUN-31", "RUN-32", "RUN-34", "RUN-35", "RUN-63", "RUN-71")
def test_each_resumption_starts_anew_and_the_end_stays(client: Client) -> None:
    run = waiting(client, "/call f\n/turn\n/call g\n/turn\n/say Done.")
    expires_at = run["expires_at"]
    before = run["started_at"]
    for _ in range(2):
        clock.advance(10)
        resumed = submit(client, run)
        assert (resumed["status"], resumed["required_action"]) == ("queued", None)
        assert (resumed["started_at"], resumed["expires_at"]) == (before, expires_at)
        run = settle(client, run)
        assert run["started_at"] >= before + 10
        before = run["started_at"]
    assert run["status"] == "completed"


@pytest.mark.behaviour("RUN-36", "RUN-37", "RUN-38", "RUN-39", "STEP-08", "RUN-70")
def test_usage_is_the_sum_of_the_steps_and_comes_at_the_end(client: Client) -> None:
    script = (
        "/usage prompt=100 completion=20 cached=30 reasoning=4\n/say One.\n/call f\n/turn\n"
        "/usage prompt=200 completion=40 cached=50 reasoning=6\n/say Two."
    )
    thread = client.thread(script)
    run = again(client, thread["id"], tools=[F])
    assert run["usage"] is None
    run = settle(client, run)
    assert run["usage"] is None
    assert [step["usage"] is None for step in steps(client, run)] == [False, True]
    assert submit(client, run)["usage"] is None
    run = settle(client, run)
    assert run["usage"] == {
        "prompt_tokens": 300,
        "completion_tokens": 60,
        "total_tokens": 360,
        "prompt_token_details": {"cached_tokens": 80},
        "completion_tokens_details": {"reasoning_tokens": 10},
    }
    found = steps(client, run)
    assert len(found) == 3
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert sum(step["usage"][name] for step in found) == run["usage"][name]
    assert run["completed_at"] >= found[-1]["completed_at"]


@pytest.mark.behaviour("RUN-37")
def test_tokens_are_counted_when_the_model_tells_none(standin: Client) -> None:
    run = play(standin, "/say Six words are in this answer.", model="plain")
    assert run["usage"]["completion_tokens"] > 0
    assert run["usage"]["prompt_tokens"] > 0
    (step,) = steps(standin, run)
    assert step["usage"] == run["usage"]


# --- expiry ----------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("RUN-40", "RUN-41", "RUN-42", "STEP-16", "RUN-33")
def test_a_run_whose_outputs_never_come_expires(client: Client) -> None:
    run = waiting(client, "/say Wait.\n/call f")
    clock.advance(run["expires_at"] - clock.now() - 5)
    assert load(client, run) == run
    clock.advance(6)
    expired = load(client, run)
    assert expired["status"] == "expired"
    assert expired["expires_at"] == run["expires_at"]
    said, called = steps(client, run)
    assert (said["status"], said["expired_at"]) == ("completed", None)
    assert called["status"] == "expired"
    assert run["expires_at"] <= called["expired_at"] <= clock.timestamp()
    assert called["step_details"]["tool_calls"][0]["function"]["output"] is None


@pytest.mark.behaviour("RUN-41", "RUN-42", "RUN-43")
@pytest.mark.parametrize("noticed_by", ["worker", "reader"])
def test_a_run_that_is_answering_expires_with_what_it_said(server: Server, client: Client, noticed_by: str) -> None:
    run = settle(client, start(client, "/say Hel\n/wait 2000\n/say lo"), "in_progress")
    eventually(lambda: steps(client, run))
    clock.advance(TTL + 1)
    if noticed_by == "worker":
        eventually(lambda: server.run(server.store.runs.status(run["id"])) == "expired")
    assert load(client, run)["status"] == "expired"
    (step,) = steps(client, run)
    assert step["status"] == "expired"
    assert step["expired_at"] >= run["expires_at"]
    (message,) = written(client, run)
    assert (message["status"], message["incomplete_details"]) == ("incomplete", {"reason": "run_expired"})
    assert text_of(message) == "Hel"
    assert message["incomplete_at"] >= run["expires_at"]
    assert message["completed_at"] is None


@pytest.mark.behaviour("RUN-40", "RUN-41")
def test_a_waiting_run_expires_without_anybody_asking_for_it(server: Server, client: Client) -> None:
    run = waiting(client)
    clock.advance(TTL + 1)
    eventually(lambda: server.run(server.store.runs.status(run["id"])) == "expired")


@pytest.mark.behaviour("RUN-41", "RUN-44", "RUN-46", "RUN-59")
@pytest.mark.parametrize("status", ["queued", "cancelling", "requires_action"])
@pytest.mark.parametrize(
    "look", ["retrieve", "list", "stream", "message", "run", "steps", "cancel", "submit", "modify"]
)
def test_expiry_is_seen_by_whoever_looks_first(lives: Lives, status: str, look: str) -> None:
    """On a server whose worker is busy elsewhere: nothing but the look itself can end the run."""
    if status == "requires_action":
        lives.rest()
        client, run = lives.busy, waiting(lives.busy)
        lives.hog()
    else:
        client, run = lives(status)
    clock.advance(run["expires_at"] - clock.now() + 0.001)
    thread, url = run["thread_id"], f"/threads/{run['thread_id']}"
    if look == "retrieve":
        assert load(client, run)["status"] == "expired"
    elif look == "list":
        assert client.get(url + "/runs")["data"][0]["status"] == "expired"
    elif look == "stream":
        response = client.raw("GET", "/v1" + path(run, "/stream"), check=False)
        assert b"event: thread.run.expired\n" in response.body
    elif look == "message":
        client.post(url + "/messages", {"role": "user", "content": "On we go."})
    elif look == "run":
        assert again(client, thread)["status"] == "queued"
    elif look == "steps":
        assert "in_progress" not in {step["status"] for step in steps(client, run)}
    elif look == "cancel":
        assert client.post(path(run, "/cancel"), status=400) == error("Cannot cancel run with status 'expired'.")
    elif look == "submit":
        body = {"tool_outputs": [{"tool_call_id": "call_x", "output": ""}]}
        refused = client.post(path(run, "/submit_tool_outputs"), body, status=400)
        assert refused == error('Runs in status "expired" do not accept tool outputs.')
    else:
        changed = client.post(path(run), {"metadata": {"a": "b"}})
        assert (changed["status"], changed["metadata"]) == ("expired", {"a": "b"})
    assert load(client, run)["status"] == "expired"


@pytest.mark.behaviour("RUN-45", "RUN-46")
def test_outputs_for_an_expired_run_are_refused_and_the_thread_is_free(client: Client) -> None:
    run = waiting(client)
    clock.advance(TTL + 1)
    refused = submit(client, run, status=400)
    assert refused == error('Runs in status "expired" do not accept tool outputs.')
    client.post(f"/threads/{run['thread_id']}/messages", {"role": "user", "content": "Hi"})
    assert settle(client, again(client, run["thread_id"]))["status"] == "completed"


@pytest.mark.behaviour("RUN-47")
def test_the_time_to_live_can_be_set(make_server: Callable[..., Server]) -> None:
    client = make_server(run_ttl_seconds=1).client()
    run = waiting(client)
    assert run["expires_at"] == run["created_at"] + 1
    clock.advance(1)
    assert settle(client, run, *SETTLED[:-1])["status"] == "expired"
    longer = start(client, "Hello", loomgate={"expires_after_seconds": 5})
    assert longer["expires_at"] == longer["created_at"] + 5
    body = {"assistant_id": client.assistant()["id"], "loomgate": {"expires_after_seconds": _TTL_MAX + 1}}
    refused = client.post(f"/threads/{run['thread_id']}/runs", body, status=400)
    assert refused["param"] == "loomgate.expires_after_seconds"
