"""Assistants of code that was written for OpenAI's SDK, on a model server that another project made.

The model talks nonsense at random, so these tests hold what a run does, never what was said.
"""

from typing import Any

import msgspec
import openai
import pytest
from openai.types.beta.threads import Message, Run, Text

# The SDK says of every call in `client.beta` that it is deprecated; keeping those calls working is the point here.
pytestmark = pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")

FORECAST: Any = {
    "type": "function",
    "function": {
        "name": "forecast",
        "description": "Weather of the coming days",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer"}, "unit": {"enum": ["c", "f"]}},
            "required": ["days", "unit"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "forecast"}}


def assistant(client: openai.OpenAI, **fields: Any) -> str:
    """A new assistant's id."""
    made = client.beta.assistants.create(**{"model": "loom", "instructions": "You weave."} | fields)
    return made.id


def thread(client: openai.OpenAI, *texts: str) -> str:
    """A new thread's id, with user messages in it."""
    return client.beta.threads.create(messages=[{"role": "user", "content": text} for text in texts]).id


def run(client: openai.OpenAI, on: str, by: str, **fields: Any) -> Run:
    """A run, polled to its end or until it asks for something."""
    return client.beta.threads.runs.create_and_poll(thread_id=on, assistant_id=by, poll_interval_ms=50, **fields)


def messages(client: openai.OpenAI, on: str) -> list[Message]:
    """All messages of a thread, oldest first."""
    return list(client.beta.threads.messages.list(on, order="asc"))


def said(message: Message) -> str:
    """The text of a message with one text part."""
    (part,) = message.content
    assert part.type == "text"
    return part.text.value


def test_run(client: openai.OpenAI) -> None:
    on, by = thread(client, "What is a loom?"), assistant(client)
    done = run(client, on, by)
    assert done.status == "completed", done
    assert done.usage is not None
    question, answer = messages(client, on)
    assert (question.role, answer.role) == ("user", "assistant")
    assert (answer.run_id, answer.assistant_id, answer.status) == (done.id, by, "completed")
    assert said(answer)
    (step,) = client.beta.threads.runs.steps.list(done.id, thread_id=on)
    assert step.status == "completed"
    assert step.step_details.type == "message_creation"
    assert step.step_details.message_creation.message_id == answer.id


def test_streamed_run(client: openai.OpenAI) -> None:
    on, by = thread(client, "What is a shuttle?"), assistant(client)
    names: list[str] = []
    with client.beta.threads.runs.stream(thread_id=on, assistant_id=by) as stream:
        for event in stream:
            if not names or names[-1] != event.event:
                names.append(event.event)
        (final,) = stream.get_final_messages()
        done = stream.get_final_run()
    # BEHAVIOUR SSE-40
    assert names == [
        "thread.run.created",
        "thread.run.queued",
        "thread.run.in_progress",
        "thread.run.step.created",
        "thread.run.step.in_progress",
        "thread.message.created",
        "thread.message.in_progress",
        "thread.message.delta",
        "thread.message.completed",
        "thread.run.step.completed",
        "thread.run.completed",
    ]
    stored = client.beta.threads.messages.retrieve(final.id, thread_id=on)
    assert said(stored) == said(final)
    assert client.beta.threads.runs.retrieve(done.id, thread_id=on).status == "completed"


def test_deltas_are_the_text(client: openai.OpenAI) -> None:
    on, by = thread(client, "What is a reed?"), assistant(client)
    deltas: list[str] = []

    class Handler(openai.AssistantEventHandler):
        def on_text_delta(self, delta: Any, snapshot: Text) -> None:
            deltas.append(delta.value)

    with client.beta.threads.runs.stream(thread_id=on, assistant_id=by, event_handler=Handler()) as stream:
        stream.until_done()
    assert "".join(deltas) == said(messages(client, on)[-1])


def test_conversation(client: openai.OpenAI) -> None:
    """Several messages before a run, and a second run that follows the first one."""
    on, by = thread(client, "What is a warp?", "And what is a weft?"), assistant(client)
    first = run(client, on, by)
    client.beta.threads.messages.create(on, role="user", content="Tell me more.")
    second = run(client, on, by, additional_instructions="Be brief.")
    assert (first.status, second.status) == ("completed", "completed"), (first, second)
    found = messages(client, on)
    assert [message.role for message in found] == ["user", "user", "assistant", "user", "assistant"]
    assert [message.run_id for message in found] == [None, None, first.id, None, second.id]
    assert [made.id for made in client.beta.threads.runs.list(on, order="asc")] == [first.id, second.id]


def test_function(client: openai.OpenAI) -> None:
    on, by = thread(client, "Will it rain?"), assistant(client, tools=[FORECAST])
    asking = run(client, on, by, tool_choice=NAMED)
    assert asking.status == "requires_action", asking
    assert asking.required_action is not None
    (call,) = asking.required_action.submit_tool_outputs.tool_calls
    assert call.function.name == "forecast"
    arguments = msgspec.json.decode(call.function.arguments)
    assert set(arguments) == {"days", "unit"}
    done = client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=asking.id,
        thread_id=on,
        tool_outputs=[{"tool_call_id": call.id, "output": "dry"}],
        poll_interval_ms=50,
    )
    # The choice forced the first turn only (BEHAVIOUR RUN-21), so the model was free to answer.
    assert done.status == "completed", done
    answer, calls = client.beta.threads.runs.steps.list(done.id, thread_id=on)
    assert calls.step_details.type == "tool_calls"
    (kept,) = calls.step_details.tool_calls
    assert kept.type == "function"
    assert (kept.id, kept.function.arguments, kept.function.output) == (call.id, call.function.arguments, "dry")
    assert answer.step_details.type == "message_creation"
    assert said(messages(client, on)[-1])


def test_streamed_function(client: openai.OpenAI) -> None:
    on, by = thread(client, "Will it snow?"), assistant(client, tools=[FORECAST])
    with client.beta.threads.runs.stream(thread_id=on, assistant_id=by, tool_choice=NAMED) as stream:
        stream.until_done()
        asking = stream.current_run
        step = stream.current_run_step_snapshot
    assert asking is not None
    assert asking.required_action is not None
    (call,) = asking.required_action.submit_tool_outputs.tool_calls
    # What the SDK put together from the deltas is what the run asks for.
    assert step is not None
    assert step.step_details.type == "tool_calls"
    (streamed,) = step.step_details.tool_calls
    assert streamed.type == "function"
    assert (streamed.id, streamed.function.name) == (call.id, call.function.name)
    assert streamed.function.arguments == call.function.arguments
    with client.beta.threads.runs.submit_tool_outputs_stream(
        run_id=asking.id, thread_id=on, tool_outputs=[{"tool_call_id": call.id, "output": "no"}]
    ) as stream:
        stream.until_done()
        (final,) = stream.get_final_messages()
    assert said(final) == said(messages(client, on)[-1])
    assert client.beta.threads.runs.retrieve(asking.id, thread_id=on).status == "completed"


def test_json_object(client: openai.OpenAI) -> None:
    on, by = thread(client, "Answer as JSON."), assistant(client, response_format={"type": "json_object"})
    done = run(client, on, by)
    assert done.status == "completed", done
    assert isinstance(msgspec.json.decode(said(messages(client, on)[-1])), dict)


def test_answer_cut_at_its_limit(client: openai.OpenAI) -> None:
    """This server ignores ``max_completion_tokens`` and stops where its context ends, which it calls ``length``."""
    on, by = thread(client, "Never stop."), assistant(client, model="endless")
    done = run(client, on, by, max_completion_tokens=256)
    assert done.status == "incomplete", done
    assert done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_completion_tokens"
    cut = messages(client, on)[-1]
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_tokens"
    assert said(cut)
    # The thread is free for the next run (BEHAVIOUR E2E-09).
    assert run(client, on, by, model="loom", truncation_strategy={"type": "last_messages", "last_messages": 1})


def failed(done: Run) -> str:
    """The message of a run that failed through its model server."""
    assert done.status == "failed", done
    assert done.last_error is not None
    assert done.last_error.code == "server_error"
    return done.last_error.message


def test_what_the_server_refuses(client: openai.OpenAI) -> None:
    """It answers ``json_schema`` with status 500."""
    shape: Any = {"type": "json_schema", "json_schema": {"name": "cloth", "schema": {"type": "object"}}}
    on, by = thread(client, "Answer as cloth."), assistant(client, response_format=shape)
    assert failed(run(client, on, by))
    # The failure leaves the thread usable.
    assert run(client, on, by, response_format={"type": "text"}).status == "completed"


def test_empty_stream(client: openai.OpenAI) -> None:
    """To a prompt that is too long for a stream this server answers 200 and an empty body: that is no answer."""
    on, by = thread(client, "thread " * 2000), assistant(client)
    assert failed(run(client, on, by))
    assert [message.role for message in messages(client, on) if message.status == "completed"] == ["user"]


def test_server_down(stranded: openai.OpenAI) -> None:
    on, by = thread(stranded, "Is anybody there?"), assistant(stranded)
    assert failed(run(stranded, on, by))
    (message,) = messages(stranded, on)
    assert message.role == "user"
    # Nothing is left locked.
    stranded.beta.threads.messages.create(on, role="user", content="Hello?")
