"""Stream events: their names and their bytes, made once for every viewer (BEHAVIOUR section 10)."""

from typing import Literal

import msgspec

from loomgate.wire import lifecycle
from loomgate.wire.runs import Run, Step
from loomgate.wire.threads import Message

_encode = msgspec.json.Encoder().encode

DONE = b"event: done\ndata: [DONE]\n\n"  # SSE-02
# How the events begin that tell a run's end.
ENDS = tuple(f"event: thread.run.{status}\n".encode() for status in sorted(lifecycle.TERMINAL))
KEEP_ALIVE = b": keep-alive\n\n"  # SSE-08

Noun = Literal["thread.run", "thread.run.step", "thread.message"]


def frame(name: str, data: bytes) -> bytes:
    """One event as it goes over the wire: ``data`` is one line of compact JSON (SSE-01)."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)


def with_id(id: str, event: bytes) -> bytes:
    """``event`` with an ``id:`` line, for viewers that asked for ids (docs/extensions.md). A comment stays alone."""
    if event.startswith(b":"):
        return event
    return b"id: %b\n%b" % (id.encode(), event)


def run_event(run: Run, body: bytes, name: str | None = None) -> bytes:
    """``thread.run.<status>``; ``name`` says ``created`` for the first one, whose status is `queued` too."""
    return frame(f"thread.run.{name or run.status}", body)


def step_event(step: Step, expires_at: int | None, name: str | None = None) -> bytes:
    """``thread.run.step.<status>``, with the run's ``expires_at`` shown (STEP-18)."""
    shown = msgspec.structs.replace(step, expires_at=expires_at)
    return frame(f"thread.run.step.{name or step.status}", _encode(shown))


def message_event(message: Message, body: bytes, name: str | None = None) -> bytes:
    """``thread.message.<status>``."""
    return frame(f"thread.message.{name or message.status}", body)


def text_delta(message_id: str, text: str, *, first: bool, index: int = 0) -> bytes:
    """A piece of a message's text; the first one carries empty annotations (SSE-22, SSE-23, SSE-24)."""
    value: dict[str, object] = {"value": text, "annotations": []} if first else {"value": text}
    return _message_delta(message_id, {"index": index, "type": "text", "text": value})


def refusal_delta(message_id: str, text: str, *, index: int = 0) -> bytes:
    """A piece of a refusal."""
    return _message_delta(message_id, {"index": index, "type": "refusal", "refusal": text})


def _message_delta(message_id: str, part: dict[str, object]) -> bytes:
    data = {"id": message_id, "object": "thread.message.delta", "delta": {"content": [part]}}
    return frame("thread.message.delta", _encode(data))


def call_opened(step_id: str, index: int, call_id: str, name: str) -> bytes:
    """The beginning of a function call: constant strings are sent once (SSE-22, SSE-42)."""
    function = {"name": name, "arguments": "", "output": None}
    return _step_delta(step_id, {"index": index, "id": call_id, "type": "function", "function": function})


def call_arguments(step_id: str, index: int, piece: str) -> bytes:
    """More of a function call's arguments."""
    return _step_delta(step_id, {"index": index, "type": "function", "function": {"arguments": piece}})


def _step_delta(step_id: str, call: dict[str, object]) -> bytes:
    data = {
        "id": step_id,
        "object": "thread.run.step.delta",
        "delta": {"step_details": {"type": "tool_calls", "tool_calls": [call]}},
    }
    return frame("thread.run.step.delta", _encode(data))


def error_event(message: str, *, code: str | None = None, type: str = "server_error") -> bytes:
    """An ``error`` event that both official SDKs raise on (SSE-52, SSE-53)."""
    error: dict[str, object] = {"code": code, "message": message, "param": None, "type": type}
    return frame("error", _encode({"error": error, **error}))
