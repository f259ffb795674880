"""Run steps (BEHAVIOUR 5)."""

from typing import Any

import pytest

from loomgate import clock
from tests.api.driving import (
    ACTIVE,
    CALL,
    TERMINAL,
    F,
    G,
    Lives,
    calls,
    documented,
    error,
    path,
    play,
    settle,
    steps,
    stream,
    submit,
    text_of,
    waiting,
    written,
)
from tests.support.server import Client

_BOTH = '/say Let me see.\n/call f {"n": 1}\n/call g {"n": 2}\n/turn\n/say Again.\n/call f\n/turn\n/say Done.'


def _streamed(client: Client, script: str) -> list[tuple[str, Any]]:
    thread = client.thread(script)
    body = {"assistant_id": client.assistant()["id"], "tools": [F, G]}
    found = stream(client, f"/threads/{thread['id']}/runs", body)
    while found[-1][0] == "thread.run.requires_action":
        run = found[-1][1]
        outputs = [{"tool_call_id": call["id"], "output": "out"} for call in calls(run)]
        found += stream(client, path(run, "/submit_tool_outputs"), {"tool_outputs": outputs})
    return found


@pytest.mark.behaviour("STEP-01")
@pytest.mark.parametrize("status", [*ACTIVE, *TERMINAL])
def test_the_statuses_and_types_of_steps(lives: Lives, status: str) -> None:
    client, run = lives(status)
    expected = {
        "queued": [],
        "in_progress": [("message_creation", "in_progress")],
        "requires_action": [("tool_calls", "in_progress")],
        "cancelling": [],
        "cancelled": [("tool_calls", "cancelled")],
        "failed": [("message_creation", "failed")],
        "completed": [("message_creation", "completed")],
        "incomplete": [("message_creation", "completed")],
        "expired": [("tool_calls", "expired")],
    }
    found = [(step["type"], step["status"]) for step in steps(client, run)]
    assert found == expected[status]
    assert {kind for rows in expected.values() for kind, _ in rows} == documented("RunStepObject", "type")
    assert {state for rows in expected.values() for _, state in rows} == documented("RunStepObject", "status")
    lives.end(client, run)


@pytest.mark.behaviour("STEP-16", "STEP-17")
@pytest.mark.parametrize("status", TERMINAL)
def test_each_end_has_its_own_time(lives: Lives, status: str) -> None:
    client, run = lives(status)
    (step,) = steps(client, run)
    stamp = {"incomplete": "completed"}.get(status, status) + "_at"
    times = ("cancelled_at", "completed_at", "expired_at", "failed_at")
    assert {name for name in times if step[name] is not None} == {stamp}
    assert run["created_at"] <= step["created_at"] <= step[stamp] <= clock.timestamp()
    assert (step["last_error"] is not None) == (status == "failed")
    assert step["usage"] is not None or status == "failed"
    assert (step["metadata"], step["expires_at"]) == ({}, None)
    assert "expired_at" in step


@pytest.mark.behaviour("STEP-02", "STEP-03")
def test_a_step_is_there_when_the_model_begins(client: Client) -> None:
    found = _streamed(client, CALL)
    created = [data for name, data in found if name == "thread.run.step.created"]
    assert [step["type"] for step in created] == ["tool_calls", "message_creation"]
    assert created[0]["step_details"] == {"type": "tool_calls", "tool_calls": []}
    (message,) = [data for name, data in found if name == "thread.message.created"]
    assert created[1]["step_details"] == {
        "type": "message_creation",
        "message_creation": {"message_id": message["id"]},
    }
    names = [name for name, _ in found]
    assert names.index("thread.run.step.created") < names.index("thread.run.step.delta")
    assert names.index("thread.message.created") < names.index("thread.message.delta")


@pytest.mark.behaviour("STEP-04", "STEP-05", "STEP-06", "STEP-07")
def test_a_turn_may_be_text_and_calls(client: Client) -> None:
    run = waiting(client, _BOTH)
    while run["status"] == "requires_action":
        clock.advance(2)
        submit(client, run)
        run = settle(client, run)
    found = steps(client, run)
    assert [step["type"] for step in found] == ["message_creation", "tool_calls"] * 2 + ["message_creation"]
    shared = found[1]["step_details"]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in shared] == [
        ("f", '{"n": 1}'),
        ("g", '{"n": 2}'),
    ]
    assert len(found[3]["step_details"]["tool_calls"]) == 1
    assert [text_of(message) for message in written(client, run)] == ["Let me see.", "Again.", "Done."]
    ids = [step["step_details"]["message_creation"]["message_id"] for step in found[::2]]
    assert ids == [message["id"] for message in written(client, run)]
    times = [step["created_at"] for step in found]
    assert times == sorted(times)
    assert client.get(path(run, "/steps"))["data"] == found[::-1]


@pytest.mark.behaviour("STEP-06")
def test_the_first_step_begins_no_sooner_than_its_run(client: Client) -> None:
    run = play(client, "/say Hello.")
    (step,) = steps(client, run)
    assert step["created_at"] >= run["started_at"]
    assert (step["run_id"], step["thread_id"], step["assistant_id"]) == (
        run["id"],
        run["thread_id"],
        run["assistant_id"],
    )


@pytest.mark.behaviour("STEP-08", "STEP-09", "STEP-10", "STEP-18")
def test_a_function_step_while_it_waits_and_after(client: Client) -> None:
    run = waiting(client, '/call f {"n": 1}\n/turn\n/say Done.')
    (step,) = steps(client, run)
    (call,) = step["step_details"]["tool_calls"]
    assert call == {
        "id": calls(run)[0]["id"],
        "type": "function",
        "function": {"name": "f", "arguments": '{"n": 1}', "output": None},
    }
    assert (step["status"], step["usage"], step["expires_at"]) == ("in_progress", None, run["expires_at"])
    assert client.get(path(run, f"/steps/{step['id']}")) == step
    submit(client, run, "42")
    run = settle(client, run)
    after = client.get(path(run, f"/steps/{step['id']}"))
    assert after["step_details"]["tool_calls"] == [{**call, "function": {**call["function"], "output": "42"}}]
    assert (after["status"], after["expires_at"]) == ("completed", None)
    assert after["usage"]["total_tokens"] > 0


@pytest.mark.behaviour("STEP-17", "STEP-18")
def test_steps_show_the_runs_expiry_in_streams_and_nothing_afterwards(client: Client) -> None:
    found = _streamed(client, _BOTH)
    told = [data for name, data in found if data["object"] == "thread.run.step"]
    run = found[-1][1]
    assert (run["status"], run["expires_at"]) == ("completed", None)
    assert {step["expires_at"] for step in told} == {run["created_at"] + 600}
    assert any(step["status"] == "completed" for step in told)
    for step in steps(client, run):
        assert step == client.get(path(run, f"/steps/{step['id']}"))
        assert (step["expires_at"], step["expired_at"], step["metadata"]) == (None, None, {})


@pytest.mark.behaviour("STEP-19", "ERR-23")
def test_an_unknown_step(client: Client) -> None:
    run, other = play(client, "/say Hello."), play(client, "/say Hello.")
    (foreign,) = steps(client, other)
    for id in ("step_123", foreign["id"], "run_123"):
        refused = client.get(path(run, f"/steps/{id}"), status=404)
        assert refused == error(f"No run step found with id '{id}'.")
