"""Cancelling runs (BEHAVIOUR 4.4)."""

import threading
from collections.abc import Callable

import pytest

from loomgate import clock
from tests.api.driving import (
    TERMINAL,
    TTL,
    F,
    Lives,
    again,
    error,
    eventually,
    load,
    path,
    play,
    settle,
    start,
    steps,
    text_of,
    waiting,
    written,
)
from tests.support.server import Client, Server
from tests.support.upstream import ModelEndpoint

_SOON = 2.0  # seconds


@pytest.mark.behaviour("RUN-50", "RUN-51", "RUN-58", "STEP-16")
def test_a_run_is_cancelled_while_the_model_answers(standin: Client, endpoint: ModelEndpoint) -> None:
    run = start(standin, "/say One two\n/wait 500\n/say three", model="stand-in")
    eventually(lambda: written(standin, run))
    began = clock.monotonic()
    answer = standin.post(path(run, "/cancel"))
    assert (answer["status"], answer["cancelled_at"], answer["usage"]) == ("cancelling", None, None)
    done = settle(standin, run, *TERMINAL)
    assert clock.monotonic() - began < _SOON
    assert done["status"] == "cancelled"
    assert done["cancelled_at"] >= run["created_at"]
    eventually(endpoint.dropped.is_set)  # the model is not kept talking
    (step,) = steps(standin, run)
    assert step["status"] == "cancelled"
    assert step["cancelled_at"] is not None
    (message,) = written(standin, run)
    assert (message["status"], message["incomplete_details"]) == ("incomplete", {"reason": "run_cancelled"})
    assert message["incomplete_at"] is not None
    again(standin, run["thread_id"])


@pytest.mark.behaviour("RUN-58")
def test_what_was_said_before_the_cancel_is_kept(client: Client) -> None:
    run = start(client, "/say One two three\n/wait 500\n/say four")
    eventually(lambda: written(client, run))
    client.post(path(run, "/cancel"))
    settle(client, run, "cancelled")
    (message,) = written(client, run)
    assert text_of(message) == "One two three"
    assert message["status"] == "incomplete"


@pytest.mark.behaviour("RUN-51")
def test_a_run_is_cancelled_before_the_model_said_anything(standin: Client, endpoint: ModelEndpoint) -> None:
    run = start(standin, "/wait 500\n/say never", model="stand-in")
    eventually(lambda: endpoint.requests)
    began = clock.monotonic()
    standin.post(path(run, "/cancel"))
    assert settle(standin, run)["status"] == "cancelled"
    assert clock.monotonic() - began < _SOON
    eventually(endpoint.dropped.is_set)
    assert written(standin, run) == steps(standin, run) == []


@pytest.mark.behaviour("RUN-52", "RUN-54", "RUN-51")
def test_a_run_in_the_queue_is_cancelled(make_server: Callable[..., Server]) -> None:
    client = make_server(worker_concurrency=1).client()
    hog = settle(client, start(client, "/wait 500"), "in_progress")
    run = start(client, "Hello")
    answer = client.post(path(run, "/cancel"))
    assert (answer["status"], answer["started_at"], answer["cancelled_at"]) == ("cancelling", None, None)
    client.post(path(hog, "/cancel"))
    done = settle(client, run, *TERMINAL)
    assert (done["status"], done["started_at"]) == ("cancelled", None)
    assert done["cancelled_at"] is not None
    assert written(client, run) == []


@pytest.mark.behaviour("RUN-53", "RUN-54", "STEP-16")
def test_a_waiting_run_is_cancelled(client: Client) -> None:
    run = waiting(client, "/say Hello.\n/call f")
    answer = client.post(path(run, "/cancel"))
    assert (answer["status"], answer["required_action"], answer["cancelled_at"]) == ("cancelling", None, None)
    done = settle(client, run, *TERMINAL)
    assert done["status"] == "cancelled"
    said, called = steps(client, run)
    assert (said["status"], said["cancelled_at"]) == ("completed", None)
    assert (called["status"], called["cancelled_at"]) == ("cancelled", done["cancelled_at"])
    (message,) = written(client, run)
    assert message["status"] == "completed"
    again(client, run["thread_id"])


@pytest.mark.behaviour("RUN-55")
@pytest.mark.parametrize("status", TERMINAL)
def test_what_has_ended_cannot_be_cancelled(lives: Lives, status: str) -> None:
    client, run = lives(status)
    refused = client.post(path(run, "/cancel"), status=400)
    assert refused == error(f"Cannot cancel run with status '{status}'.")
    assert load(client, run) == run


@pytest.mark.behaviour("RUN-56", "RUN-59")
def test_a_cancelling_run_cannot_be_cancelled_again_and_ends_in_time(lives: Lives) -> None:
    client, run = lives("cancelling")
    assert client.post(path(run, "/cancel"), status=400) == error("Cannot cancel run with status 'cancelling'.")
    assert load(client, run) == run
    clock.advance(TTL + 1)
    assert load(client, run)["status"] in ("cancelled", "expired")
    again(client, run["thread_id"])


@pytest.mark.behaviour("RUN-57", "RUN-31")
def test_cancelling_at_any_moment_ends_in_one_of_the_allowed_ways(client: Client) -> None:
    """Runs that are as good as done: whichever side wins, the run, its step and its message agree."""
    assistant = client.assistant()
    seen: set[str] = set()
    for moment in range(30):
        run = start(client, "/say One two three four five.", assistant_id=assistant["id"])
        threading.Event().wait(moment * 0.0004)
        response = client.raw("POST", "/v1" + path(run, "/cancel"), b"{}")
        if response.status == 400:
            assert response.error == error("Cannot cancel run with status 'completed'.")
        else:
            assert response.json["status"] == "cancelling"
        done = settle(client, run, *TERMINAL)
        seen.add(done["status"])
        found = [message["status"] for message in written(client, done)]
        ends = [step["status"] for step in steps(client, done)]
        if done["status"] == "completed":
            assert (found, ends) == (["completed"], ["completed"])
        else:
            assert done["status"] == "cancelled"
            assert (found, ends) in (([], []), (["incomplete"], ["cancelled"]))
    assert seen <= {"cancelled", "completed"}


@pytest.mark.behaviour("RUN-50")
def test_cancelling_takes_no_fields(client: Client) -> None:
    run = waiting(client, tools=[F])
    refused = client.post(path(run, "/cancel"), {"reason": "x"}, status=400)
    assert refused == error("Unknown parameter: 'reason'.", param="reason", code="unknown_parameter")
    assert load(client, run)["status"] == "requires_action"
    assert play(client, "Hello")["status"] == "completed"
