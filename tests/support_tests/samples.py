"""Objects and streams as the real service sent them, written by hand: what the checks must take, and must refuse
once something in them is broken. Each function gives a fresh value."""

import json
from collections.abc import Callable
from typing import Any

Object = dict[str, Any]
Stream = list[tuple[str, Any]]

ASSISTANT = "asst_K2mW7cQxR9vTfYh3LpZn8sBd"
THREAD = "thread_Hq4XoVt8JzKcYw1Rm6PnE3uG"
RUN = "run_T5bNfDk9QvXs2LrYc7HwJm4A"
STEP = "step_Zp8GhRt3VkWn6QyXe1MbCd9F"
MESSAGE = "msg_Rw7KjPd2TxNv5YqLc9HsGm4B"
CALL_A = "call_Vn3XpTq8KdRw6YhMc2LsJf9G"
CALL_B = "call_Bt7HkWm4QnXr9PvYd3LzCs6E"
NOW = 1_763_500_000

WEATHER: Object = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": False,
    },
}


def assistant(**changed: Any) -> Object:
    return {
        "id": ASSISTANT,
        "object": "assistant",
        "created_at": NOW,
        "name": None,
        "description": None,
        "model": "scripted",
        "instructions": None,
        "tools": [WEATHER],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "response_format": "auto",
        "reasoning_effort": None,
        **changed,
    }


def thread(**changed: Any) -> Object:
    return {"id": THREAD, "object": "thread", "created_at": NOW, "metadata": {}, "tool_resources": {}, **changed}


def run(status: str = "queued", **changed: Any) -> Object:
    """A run by an assistant without instructions (DEV-05)."""
    return {
        "id": RUN,
        "object": "thread.run",
        "created_at": NOW,
        "assistant_id": ASSISTANT,
        "thread_id": THREAD,
        "status": status,
        "started_at": None if status == "queued" else NOW + 1,
        "expires_at": None if status == "completed" else NOW + 600,
        "cancelled_at": None,
        "failed_at": None,
        "completed_at": NOW + 2 if status == "completed" else None,
        "required_action": None,
        "last_error": None,
        "incomplete_details": None,
        "model": "scripted",
        "instructions": None,
        "tools": [WEATHER],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "max_prompt_tokens": None,
        "max_completion_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "usage": usage() if status == "completed" else None,
        "response_format": "auto",
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        **changed,
    }


def usage() -> Object:
    return {
        "prompt_tokens": 21,
        "completion_tokens": 5,
        "total_tokens": 26,
        "prompt_token_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def step(details: Object, status: str = "in_progress", **changed: Any) -> Object:
    return {
        "id": STEP,
        "object": "thread.run.step",
        "created_at": NOW + 1,
        "run_id": RUN,
        "assistant_id": ASSISTANT,
        "thread_id": THREAD,
        "type": details["type"],
        "status": status,
        "cancelled_at": None,
        "completed_at": NOW + 2 if status == "completed" else None,
        "expires_at": NOW + 600,
        "expired_at": None,
        "failed_at": None,
        "last_error": None,
        "step_details": details,
        "metadata": {},
        "usage": usage() if status == "completed" else None,
        **changed,
    }


def creation(message: str = MESSAGE) -> Object:
    return {"type": "message_creation", "message_creation": {"message_id": message}}


def calls(*outputs: str | None) -> Object:
    """The details of a step that called get_weather and then get_time, with their outputs."""
    asked = [(CALL_A, "get_weather", '{"city":"Oslo"}'), (CALL_B, "get_time", '{"zone":"CET"}')]
    found = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments, "output": output}}
        for (id, name, arguments), output in zip(asked, outputs, strict=False)
    ]
    return {"type": "tool_calls", "tool_calls": found}


def text(value: str) -> Object:
    return {"type": "text", "text": {"value": value, "annotations": []}}


def message(status: str = "in_progress", *content: Object, **changed: Any) -> Object:
    return {
        "id": MESSAGE,
        "object": "thread.message",
        "created_at": NOW + 1,
        "thread_id": THREAD,
        "role": "assistant",
        "assistant_id": ASSISTANT,
        "run_id": RUN,
        "status": status,
        "incomplete_details": {"reason": "run_failed"} if status == "incomplete" else None,
        "incomplete_at": NOW + 2 if status == "incomplete" else None,
        "completed_at": NOW + 2 if status == "completed" else None,
        "content": list(content),
        "attachments": [],
        "metadata": {},
        **changed,
    }


def page(*data: Object, **changed: Any) -> Object:
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": list(data), **ends, "has_more": False, **changed}


def error(**changed: Any) -> Object:
    inner: Object = {
        "message": "No thread found with id 'thread_x'.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    return {"error": {**inner, **changed}}


def message_delta(value: str, **text: Any) -> Object:
    part = {"index": 0, "type": "text", "text": {"value": value, **text}}
    return {"id": MESSAGE, "object": "thread.message.delta", "delta": {"content": [part]}}


def step_delta(index: int, **call: Any) -> Object:
    details = {"type": "tool_calls", "tool_calls": [{"index": index, "type": "function", **call}]}
    return {"id": STEP, "object": "thread.run.step.delta", "delta": {"step_details": details}}


def first_call(index: int, id: str, name: str) -> Object:
    return step_delta(index, id=id, function={"name": name, "arguments": "", "output": None})


def more_call(index: int, arguments: str) -> Object:
    return step_delta(index, function={"arguments": arguments})


def _answer() -> Stream:
    return [
        ("thread.run.queued", run()),
        ("thread.run.in_progress", run("in_progress")),
        ("thread.run.step.created", step(creation())),
        ("thread.run.step.in_progress", step(creation())),
        ("thread.message.created", message()),
        ("thread.message.in_progress", message()),
        ("thread.message.delta", message_delta("Grüß", annotations=[])),
        ("thread.message.delta", message_delta(" Gott")),
        ("thread.message.delta", message_delta(" 👋")),
        ("thread.message.completed", message("completed", text("Grüß Gott 👋"))),
        ("thread.run.step.completed", step(creation(), "completed")),
        ("thread.run.completed", run("completed")),
        ("done", "[DONE]"),
    ]


def plain() -> Stream:
    """SSE-40."""
    return [("thread.run.created", run()), *_answer()]


def thread_and_run() -> Stream:
    """SSE-41."""
    return [("thread.created", thread()), *plain()]


def required_action() -> Object:
    asked = calls(None, None)["tool_calls"]
    plain = [{**call, "function": {k: v for k, v in call["function"].items() if k != "output"}} for call in asked]
    return {"type": "submit_tool_outputs", "submit_tool_outputs": {"tool_calls": plain}}


def function_part_1() -> Stream:
    """SSE-42 and SSE-43: two calls."""
    return [
        ("thread.run.created", run()),
        ("thread.run.queued", run()),
        ("thread.run.in_progress", run("in_progress")),
        ("thread.run.step.created", step(calls())),
        ("thread.run.step.in_progress", step(calls())),
        ("thread.run.step.delta", first_call(0, CALL_A, "get_weather")),
        ("thread.run.step.delta", more_call(0, '{"city":')),
        ("thread.run.step.delta", more_call(0, '"Oslo"}')),
        ("thread.run.step.delta", first_call(1, CALL_B, "get_time")),
        ("thread.run.step.delta", more_call(1, '{"zone":"CET"}')),
        ("thread.run.requires_action", run("requires_action", required_action=required_action())),
        ("done", "[DONE]"),
    ]


def function_part_2() -> Stream:
    """SSE-42: the first step is another than the one of the message."""
    old = step(calls("3 degrees", "23:00"), "completed", id="step_Old8GhRt3VkWn6QyXe1MbCd9")
    return [("thread.run.step.completed", old), *_answer()]


def failed() -> Stream:
    """SSE-48, while a message was open."""
    trouble = {"code": "server_error", "message": "The model did not answer."}
    return [
        *plain()[:9],
        ("thread.message.incomplete", message("incomplete", text("Grüß Gott"))),
        ("thread.run.step.failed", step(creation(), "failed", failed_at=NOW + 2, last_error=trouble)),
        ("thread.run.failed", run("failed", failed_at=NOW + 2, expires_at=None, last_error=trouble, usage=usage())),
        ("done", "[DONE]"),
    ]


def cut() -> Stream:
    """SSE-52 and SSE-53: the stream itself gives up."""
    inner = error(message="The server had an error.", type="server_error")["error"]
    return [*plain()[:8], ("error", {"error": inner, **inner}), ("done", "[DONE]")]


def encode(stream: Stream) -> bytes:
    """A stream's bytes as SSE-01 wants them."""

    def data(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    return "".join(f"event: {name}\ndata: {data(value)}\n\n" for name, value in stream).encode()


STREAMS: dict[str, Callable[[], Stream]] = {
    "plain": plain,
    "thread_and_run": thread_and_run,
    "function_part_1": function_part_1,
    "function_part_2": function_part_2,
    "failed": failed,
    "cut": cut,
}
