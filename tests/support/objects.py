"""Threads, messages and runs to store, each with fresh ids and the present time."""

from typing import Any

from loomgate import clock
from loomgate.wire.ids import new_id
from loomgate.wire.runs import CreatedMessage, MessageDetails, Run, Step, ToolCallsDetails
from loomgate.wire.threads import Message, Text, TextContent, Thread, ThreadOptions

WORKSPACE = "default"


def make_thread(rule: str | None = None, **fields: Any) -> Thread:
    thread = Thread(id=new_id("thread"), created_at=clock.timestamp(), **fields)
    if rule is not None:
        thread.loomgate = ThreadOptions(on_active_run=rule)  # type: ignore[arg-type]
    return thread


def make_message(thread: str, text: str = "Hello.", **fields: Any) -> Message:
    now = clock.timestamp()
    fields = {"role": "user", "content": [TextContent(Text(text))], "completed_at": now, **fields}
    return Message(id=new_id("msg"), created_at=now, thread_id=thread, **fields)


def make_run(thread: str, ttl: int = 600, **fields: Any) -> Run:
    now = clock.timestamp()
    fields = {"assistant_id": "asst_one", "model": "scripted", **fields}
    return Run(id=new_id("run"), created_at=now, thread_id=thread, expires_at=now + ttl, **fields)


def make_step(run: Run, message: Message | None = None) -> Step:
    """A step in progress: of ``message``, else of tool calls."""
    return Step(
        id=new_id("step"),
        created_at=clock.timestamp(),
        run_id=run.id,
        assistant_id=run.assistant_id,
        thread_id=run.thread_id,
        type="tool_calls" if message is None else "message_creation",
        step_details=ToolCallsDetails() if message is None else MessageDetails(CreatedMessage(message.id)),
    )


def make_answer(run: Run, text: str = "") -> Message:
    """A message in progress that ``run`` writes."""
    return make_message(
        run.thread_id,
        role="assistant",
        status="in_progress",
        completed_at=None,
        content=[TextContent(Text(text))] if text else [],
        assistant_id=run.assistant_id,
        run_id=run.id,
    )
