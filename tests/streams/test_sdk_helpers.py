"""What the official Python SDK's helpers need (BEHAVIOUR section 12): pollers, stream managers, event handlers."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AssistantEventHandler, AsyncOpenAI, OpenAI
from openai.types.beta.threads import Text, TextDelta
from openai.types.beta.threads.runs import RunStep, ToolCall

from loomgate import clock
from tests.support import sse
from tests.support.eventually import eventually, passing
from tests.support.recorder import Recorder
from tests.support.server import Server

TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
SCRIPT = '/call get_weather {"city": "Oslo"}\n/turn\n/say It is cold.'


@pytest.fixture
def wire(server: Server) -> Iterator[Recorder]:
    with Recorder(server.url) as recorder:
        yield recorder
        recorder.check()


@pytest.fixture
def sdk(server: Server, wire: Recorder) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{wire.url}/v1", api_key=server.new_key(), max_retries=0) as client:
        yield client


def asked(sdk: OpenAI, text: str) -> dict[str, Any]:
    """The arguments of a run by an assistant with the tool, on a new thread with one message."""
    assistant = sdk.beta.assistants.create(model="scripted", tools=[TOOL])
    thread = sdk.beta.threads.create(messages=[{"role": "user", "content": text}])
    return {"thread_id": thread.id, "assistant_id": assistant.id}


def outputs(run: Any) -> list[Any]:
    return [
        {"tool_call_id": call.id, "output": "3 degrees"} for call in run.required_action.submit_tool_outputs.tool_calls
    ]


class Handler(AssistantEventHandler):
    """Writes down every call of the SDK."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.said = ""
        self.arguments = ""

    def note(self, name: str) -> None:
        if not (self.calls and self.calls[-1] == name and name.endswith("delta")):
            self.calls.append(name)

    def on_run_step_created(self, run_step: RunStep) -> None:
        self.note(f"step created: {run_step.type}")

    def on_run_step_done(self, run_step: RunStep) -> None:
        self.note(f"step done: {run_step.status}")

    def on_message_created(self, message: Any) -> None:
        self.note("message created")

    def on_message_done(self, message: Any) -> None:
        self.note(f"message done: {message.status}")

    def on_text_created(self, text: Text) -> None:
        self.note("text created")

    def on_text_delta(self, delta: TextDelta, snapshot: Text) -> None:
        self.note("text delta")
        self.said += delta.value or ""
        assert snapshot.value == self.said

    def on_text_done(self, text: Text) -> None:
        self.note(f"text done: {text.value}")

    def on_tool_call_created(self, tool_call: ToolCall) -> None:
        self.note(f"call created: {tool_call.type}")

    def on_tool_call_delta(self, delta: Any, snapshot: Any) -> None:
        self.note("call delta")
        self.arguments += delta.function.arguments or ""
        assert snapshot.function.arguments == self.arguments

    def on_tool_call_done(self, tool_call: Any) -> None:
        self.note(f"call done: {tool_call.function.name}")

    def on_end(self) -> None:
        self.note("end")


@pytest.mark.behaviour("SDK-04", "SDK-05", "SSE-22", "SSE-23")
def test_an_event_handler_of_a_plain_run(sdk: OpenAI, wire: Recorder) -> None:
    handler = Handler()
    with sdk.beta.threads.runs.stream(**asked(sdk, "/say It rains."), event_handler=handler) as stream:
        stream.until_done()
        (message,) = stream.get_final_messages()
        run = stream.get_final_run()
    assert handler.calls == [
        "step created: message_creation",
        "message created",
        "text created",
        "text delta",
        "text done: It rains.",
        "message done: completed",
        "step done: completed",
        "end",
    ]
    assert (message.run_id, run.status) == (run.id, "completed")
    (seen,) = wire.streams()
    assert seen.sent["x-stainless-stream-helper"] == "threads.runs.create_and_stream"
    assert seen.sent["x-stainless-custom-event-handler"] == "true"


@pytest.mark.behaviour("SDK-04", "SDK-05", "SSE-20", "SSE-42", "SSE-22")
def test_an_event_handler_of_a_function_run(sdk: OpenAI, wire: Recorder) -> None:
    first, second = Handler(), Handler()
    arguments = asked(sdk, SCRIPT)
    with sdk.beta.threads.runs.stream(**arguments, event_handler=first) as stream:
        run = stream.get_final_run()
        with pytest.raises(RuntimeError):
            stream.get_final_messages()  # there was none
    assert run.status == "requires_action"
    assert first.arguments == '{"city": "Oslo"}'
    opened = ["step created: tool_calls", "call created: function", "call delta"]
    # The SDK calls it done when the stream ends.
    assert first.calls == [*opened, "call done: get_weather", "end"]
    with sdk.beta.threads.runs.submit_tool_outputs_stream(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs(run), event_handler=second
    ) as stream:
        assert "".join(stream.text_deltas) == "It is cold."
        assert stream.get_final_run().status == "completed"
    # The old step ends first; the SDK made no call of it here, since its deltas were in the other stream.
    assert second.calls[:2] == ["step done: completed", "step created: message_creation"]
    assert second.calls[-3:] == ["message done: completed", "step done: completed", "end"]
    assert [sse.names(seen.events) for seen in wire.streams()] == [
        sse.SEQUENCES["SSE-42/1"],
        sse.SEQUENCES["SSE-42/2"],
    ]


@pytest.mark.behaviour("SDK-04", "SSE-41")
def test_create_and_run_stream(sdk: OpenAI, wire: Recorder) -> None:
    assistant = sdk.beta.assistants.create(model="scripted")
    with sdk.beta.threads.create_and_run_stream(
        assistant_id=assistant.id, thread={"messages": [{"role": "user", "content": "/say Hello there."}]}
    ) as stream:
        assert "".join(stream.text_deltas) == "Hello there."
        assert stream.get_final_run().status == "completed"
    assert sse.names(wire.streams()[0].events) == sse.SEQUENCES["SSE-41"]


@pytest.mark.behaviour("SDK-01", "SDK-03", "HDR-22")
def test_pollers_come_back_when_they_are_told_to(make_server: Callable[..., Server]) -> None:
    server = make_server(poll_after_ms=30)
    with (
        Recorder(server.url) as wire,
        OpenAI(base_url=f"{wire.url}/v1", api_key=server.new_key(), max_retries=0) as sdk,
    ):
        slept: list[float] = []
        arguments = asked(sdk, "/wait 60\n" + SCRIPT)
        waits = 0

        def pause(seconds: float) -> None:
            nonlocal waits
            slept.append(seconds)
            waits += 1
            if waits == 2:
                clock.advance(60)
            if waits > 2:  # the wait may have begun after that jump
                with passing():
                    eventually(
                        lambda: sdk.beta.threads.runs.list(arguments["thread_id"]).data[0].status != "in_progress"
                    )

        sdk.beta.threads.runs._sleep = pause  # what the SDK's poller waits with
        run = sdk.beta.threads.runs.create_and_poll(**arguments)
        assert run.status == "requires_action"
        run = sdk.beta.threads.runs.submit_tool_outputs_and_poll(
            run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs(run)
        )
        assert run.status == "completed"
        assert set(slept) == {0.03}
        polls = [seen for seen in wire.exchanges if seen.sent.get("x-stainless-poll-helper") == "true"]
        told = {seen.headers.get("openai-poll-after-ms") for seen in polls if seen.json["status"] == "in_progress"}
        assert told == {"30"}
        wire.check()


@pytest.mark.behaviour("SDK-01")
@pytest.mark.parametrize(
    ("script", "status"),
    [("/say Done.", "completed"), ("/error invalid", "failed"), ("/repeat 300 word", "incomplete")],
)
def test_a_poller_stops_at_every_end(sdk: OpenAI, script: str, status: str) -> None:
    run = sdk.beta.threads.runs.create_and_poll(**asked(sdk, script), max_completion_tokens=256, poll_interval_ms=10)
    assert run.status == status


@pytest.mark.behaviour("SSE-53", "SDK-11", "ERR-03")
def test_an_error_event_raises(sdk: OpenAI) -> None:
    arguments = asked(sdk, "/say So far\n/wait 3600")

    def look_on() -> None:
        with sdk.beta.threads.runs.stream(**arguments) as stream:
            for event in stream:
                if event.event == "thread.message.delta":
                    sdk.beta.threads.delete(arguments["thread_id"])

    with pytest.raises(openai.APIError, match=arguments["thread_id"]):
        look_on()


@pytest.mark.behaviour("SSE-48", "SDK-05")
def test_a_failed_run_does_not_raise(sdk: OpenAI) -> None:
    with sdk.beta.threads.runs.stream(**asked(sdk, "/say So far\n/error invalid")) as stream:
        stream.until_done()
        run = stream.get_final_run()
    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "invalid_prompt"


@pytest.mark.behaviour("SDK-12")
def test_an_idempotency_key_does_no_harm(sdk: OpenAI) -> None:
    arguments = asked(sdk, "/say Done.")
    run = sdk.beta.threads.runs.create(**arguments, extra_headers={"Idempotency-Key": "once"})
    assert run.status == "queued"


@pytest.mark.behaviour("SDK-09")
def test_other_fields_of_an_object_reach_the_client(sdk: OpenAI) -> None:
    run: Any = sdk.beta.threads.runs.create_and_poll(**asked(sdk, "/say Done."), poll_interval_ms=10)
    assert run.tool_resources == {}
    assert run.usage.prompt_token_details == {"cached_tokens": 0}


@pytest.mark.behaviour("SDK-04", "SDK-05")
def test_the_asynchronous_client(server: Server, wire: Recorder) -> None:
    async def play() -> None:
        key = await asyncio.to_thread(server.new_key)
        async with AsyncOpenAI(base_url=f"{wire.url}/v1", api_key=key, max_retries=0) as sdk:
            assistant = await sdk.beta.assistants.create(model="scripted", tools=[TOOL])
            thread = await sdk.beta.threads.create(messages=[{"role": "user", "content": SCRIPT}])
            async with sdk.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
                run = await stream.get_final_run()
            async with sdk.beta.threads.runs.submit_tool_outputs_stream(
                run_id=run.id, thread_id=thread.id, tool_outputs=outputs(run)
            ) as stream:
                assert [text async for text in stream.text_deltas] == ["It ", "is ", "cold."]
                (message,) = await stream.get_final_messages()
            listed = [found.id async for found in sdk.beta.threads.messages.list(thread.id, run_id=run.id)]
            assert listed == [message.id]

    asyncio.run(play())
