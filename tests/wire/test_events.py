"""The bytes of every event, as they go over the wire."""

import msgspec
import pytest
from tests.support.objects import make_answer, make_run, make_step

from loomgate.wire import events
from loomgate.wire.runs import Run
from loomgate.wire.threads import Message

encode = msgspec.json.encode


def _data(event: bytes) -> object:
    return msgspec.json.decode(event.split(b"data: ", 1)[1])


@pytest.mark.behaviour("SSE-01")
def test_a_frame_is_two_lines_and_an_empty_one() -> None:
    body = encode({"text": "two\nlines\r\nand \u2028 \U0001f511"})
    frame = events.frame("thread.run.queued", body)
    assert frame == b"event: thread.run.queued\ndata: " + body + b"\n\n"
    assert frame.count(b"\n") == 3
    assert b"\r" not in frame


@pytest.mark.behaviour("SSE-02", "SSE-08")
def test_the_end_and_the_sign_of_life() -> None:
    assert events.DONE == b"event: done\ndata: [DONE]\n\n"
    assert events.KEEP_ALIVE == b": keep-alive\n\n"


def test_an_id_line_comes_first_and_comments_have_none() -> None:
    assert events.with_id("a-1", events.DONE) == b"id: a-1\nevent: done\ndata: [DONE]\n\n"
    assert events.with_id("a-1", b": note\n\n") == b": note\n\n"


@pytest.mark.behaviour("SSE-04", "SSE-06", "SSE-07", "STEP-18")
def test_objects_are_sent_whole_and_bare() -> None:
    run: Run = make_run("thread_one")
    body = encode(run)
    assert events.run_event(run, body) == b"event: thread.run.queued\ndata: " + body + b"\n\n"
    assert events.run_event(run, body, "created").startswith(b"event: thread.run.created\n")
    message: Message = make_answer(run)
    shown = encode(message)
    assert events.message_event(message, shown) == b"event: thread.message.in_progress\ndata: " + shown + b"\n\n"
    assert events.message_event(message, shown, "created").startswith(b"event: thread.message.created\n")
    step = make_step(run)
    event = events.step_event(step, 1234)
    assert event.startswith(b"event: thread.run.step.in_progress\n")
    assert _data(event) == {**msgspec.to_builtins(step), "expires_at": 1234}
    assert step.expires_at is None, "what is stored stays as it is"


@pytest.mark.behaviour("SSE-22", "SSE-23", "SSE-24")
def test_text_deltas() -> None:
    assert events.text_delta("msg_a", "Hi", first=True) == (
        b'event: thread.message.delta\ndata: {"id":"msg_a","object":"thread.message.delta","delta":{"content":'
        b'[{"index":0,"type":"text","text":{"value":"Hi","annotations":[]}}]}}\n\n'
    )
    assert events.text_delta("msg_a", " you", first=False, index=1) == (
        b'event: thread.message.delta\ndata: {"id":"msg_a","object":"thread.message.delta","delta":{"content":'
        b'[{"index":1,"type":"text","text":{"value":" you"}}]}}\n\n'
    )
    assert b'{"index":0,"type":"refusal","refusal":"No."}' in events.refusal_delta("msg_a", "No.")


@pytest.mark.behaviour("SSE-22", "SSE-42", "SSE-43")
def test_call_deltas_send_constant_strings_once() -> None:
    assert events.call_opened("step_a", 1, "call_b", "look") == (
        b'event: thread.run.step.delta\ndata: {"id":"step_a","object":"thread.run.step.delta","delta":{"step_details":'
        b'{"type":"tool_calls","tool_calls":[{"index":1,"id":"call_b","type":"function","function":'
        b'{"name":"look","arguments":"","output":null}}]}}}\n\n'
    )
    piece = events.call_arguments("step_a", 1, '{"a":')
    assert b'"tool_calls":[{"index":1,"type":"function","function":{"arguments":"{\\"a\\":"}}]' in piece


@pytest.mark.behaviour("SSE-52", "SSE-53")
def test_an_error_that_both_sdks_raise_on() -> None:
    error = {"code": "x", "message": "No.", "param": None, "type": "server_error"}
    event = events.error_event("No.", code="x")
    assert event.startswith(b"event: error\ndata: ")
    assert _data(event) == {"error": error, **error}
