"""Events as bytes: their form on the wire, their names, and what a client makes of the deltas."""

import re
from typing import Any, get_args

import msgspec
import pytest
from tests.support import schema

from loomgate.wire import events
from loomgate.wire.lifecycle import RunStatus, StepStatus
from loomgate.wire.runs import CreatedMessage, MessageDetails, Run, Step, ToolCallsDetails
from loomgate.wire.threads import Message, Text, TextContent

AWKWARD = 'line\nline\r\n\u2028 "quoted" \\ data: [DONE]\n\nevent: done \x00 \U0001f9f5'


def a_run(**fields: Any) -> Run:
    fields = {"id": "run_1", "expires_at": 700, **fields}
    return Run(created_at=100, assistant_id="asst_1", thread_id="thread_1", model="scripted", **fields)


def a_step(**fields: Any) -> Step:
    fields = {"type": "tool_calls", "step_details": ToolCallsDetails(), **fields}
    return Step(id="step_1", created_at=100, run_id="run_1", assistant_id="asst_1", thread_id="thread_1", **fields)


def a_message(text: str = "", **fields: Any) -> Message:
    content = [TextContent(Text(text))] if text else []
    fields = {"content": content, "status": "in_progress", **fields}
    return Message(id="msg_1", created_at=100, thread_id="thread_1", role="assistant", run_id="run_1", **fields)


def parts(event: bytes) -> tuple[str, Any]:
    """Name and data of an event, which has to be of exactly the form of SSE-01; both are held to the description."""
    match = re.fullmatch(rb"event: ([a-z_.]+)\ndata: ([^\n]*)\n\n", event)
    assert match, event
    name, data = match[1].decode(), match[2].decode()
    schema.check_event(name, data)
    return name, msgspec.json.decode(data)


@pytest.mark.behaviour("SSE-01")
def test_whatever_a_text_holds_an_event_is_two_lines_and_a_blank_one() -> None:
    message = a_message(AWKWARD)
    body = msgspec.json.encode(message)
    for event in (
        events.message_event(message, body),
        events.text_delta("msg_1", AWKWARD, first=True),
        events.refusal_delta("msg_1", AWKWARD),
        events.call_opened("step_1", 0, "call_1", AWKWARD),
        events.call_arguments("step_1", 0, AWKWARD),
        events.error_event(AWKWARD),
    ):
        assert event.count(b"\n") == 3
        assert b"\r" not in event
        assert AWKWARD in strings(parts(event)[1])


def strings(value: Any) -> set[str]:
    """All strings inside ``value``."""
    if isinstance(value, dict):
        return set().union(*(strings(one) for one in value.values()))
    if isinstance(value, list):
        return set().union(*(strings(one) for one in value))
    return {value} if isinstance(value, str) else set()


@pytest.mark.behaviour("SSE-01")
def test_data_is_compact_json() -> None:
    event = events.text_delta("msg_1", "Hi", first=False)
    assert event == (
        b"event: thread.message.delta\n"
        b'data: {"id":"msg_1","object":"thread.message.delta","delta":{"content":'
        b'[{"index":0,"type":"text","text":{"value":"Hi"}}]}}\n\n'
    )


@pytest.mark.behaviour("SSE-02", "SSE-03")
def test_the_end_is_not_json() -> None:
    assert events.DONE == b"event: done\ndata: [DONE]\n\n"


@pytest.mark.behaviour("SSE-08")
def test_a_keep_alive_is_a_comment() -> None:
    assert all(line.startswith(b":") or not line for line in events.KEEP_ALIVE.split(b"\n"))
    assert events.KEEP_ALIVE.endswith(b"\n\n")


def test_an_id_is_a_line_of_its_own_and_only_events_have_one() -> None:
    assert events.with_id("a-7", events.DONE) == b"id: a-7\nevent: done\ndata: [DONE]\n\n"
    assert events.with_id("a-7", events.KEEP_ALIVE) == events.KEEP_ALIVE


@pytest.mark.behaviour("SSE-05", "SSE-06", "SSE-07")
def test_a_runs_event_is_named_by_its_status_and_carries_it_whole() -> None:
    for status in get_args(RunStatus):
        run = a_run(status=status)
        body = msgspec.json.encode(run)
        assert parts(events.run_event(run, body)) == (f"thread.run.{status}", msgspec.json.decode(body))
    run = a_run()
    assert parts(events.run_event(run, msgspec.json.encode(run), "created"))[0] == "thread.run.created"


@pytest.mark.behaviour("SSE-05", "SSE-06", "SSE-07", "STEP-18")
def test_a_steps_event_is_named_by_its_status_and_shows_the_runs_expiry() -> None:
    for status in get_args(StepStatus):
        step = a_step(status=status)
        name, data = parts(events.step_event(step, 700))
        assert name == f"thread.run.step.{status}"
        assert data == {**msgspec.to_builtins(step), "expires_at": 700}
        assert step.expires_at is None, "what is stored stays as it was"
    assert parts(events.step_event(a_step(), 700, "created"))[0] == "thread.run.step.created"


@pytest.mark.behaviour("STEP-02", "STEP-03")
def test_a_steps_first_event_names_its_message_or_has_no_calls_yet() -> None:
    writes = a_step(type="message_creation", step_details=MessageDetails(CreatedMessage("msg_1")))
    assert parts(events.step_event(writes, 700, "created"))[1]["step_details"] == {
        "type": "message_creation",
        "message_creation": {"message_id": "msg_1"},
    }
    assert parts(events.step_event(a_step(), 700, "created"))[1]["step_details"] == {
        "type": "tool_calls",
        "tool_calls": [],
    }


@pytest.mark.behaviour("SSE-22", "SSE-23", "SSE-24")
def test_a_messages_first_delta_has_annotations_and_none_has_a_role() -> None:
    first = parts(events.text_delta("msg_1", "He", first=True))[1]
    assert first["delta"] == {"content": [{"index": 0, "type": "text", "text": {"value": "He", "annotations": []}}]}
    later = parts(events.text_delta("msg_1", "llo", first=False, index=1))[1]
    assert later["delta"] == {"content": [{"index": 1, "type": "text", "text": {"value": "llo"}}]}
    refusal = parts(events.refusal_delta("msg_1", "I cannot.", index=1))[1]
    assert refusal["delta"] == {"content": [{"index": 1, "type": "refusal", "refusal": "I cannot."}]}
    for delta in (first, later, refusal):
        assert (delta["id"], delta["object"]) == ("msg_1", "thread.message.delta")


@pytest.mark.behaviour("SSE-22", "SSE-42")
def test_merging_the_deltas_of_a_call_gives_the_call() -> None:
    """As the SDKs merge: strings are joined, so what is constant may come only once; `index` and `type` replace."""
    pieces = ['{"ci', 'ty": ', '"Paris"}']
    sent = [
        events.call_opened("step_1", 0, "call_1", "weather"),
        *(events.call_arguments("step_1", 0, piece) for piece in pieces),
    ]
    merged: dict[str, Any] = {}
    for event in sent:
        name, data = parts(event)
        assert (name, data["id"], data["object"]) == (
            "thread.run.step.delta",
            "step_1",
            "thread.run.step.delta",
        )
        assert data["delta"]["step_details"]["type"] == "tool_calls"
        (call,) = data["delta"]["step_details"]["tool_calls"]
        merge(merged, call)
    assert merged == {
        "index": 0,
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Paris"}', "output": None},
    }


def merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """SSE-22: strings are concatenated, objects merged, `index` and `type` overwritten."""
    for key, value in delta.items():
        if key in ("index", "type") or into.get(key) is None:
            into[key] = value
        elif isinstance(value, str):
            into[key] += value
        elif isinstance(value, dict):
            merge(into[key], value)
        else:
            raise AssertionError(f"{key} came twice")


@pytest.mark.behaviour("SSE-52", "SSE-53")
def test_an_error_has_its_members_twice() -> None:
    name, data = parts(events.error_event("The worker is gone.", code="gone"))
    error = {"code": "gone", "message": "The worker is gone.", "param": None, "type": "server_error"}
    assert (name, data) == ("error", {"error": error, **error})
