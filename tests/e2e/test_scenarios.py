"""The scenarios of BEHAVIOUR section 13, each once, with the official Python SDK against a listening server."""

import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Literal, cast

import openai
import pytest
from openai import OpenAI
from openai.types.beta.threads import Run

from loomgate import clock
from tests.support import sse
from tests.support.eventually import eventually
from tests.support.recorder import Recorder
from tests.support.server import Server
from tests.support.storage import ENGINES

# What the SDK says of the whole Assistants API.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:(The Assistants API is )?deprecated:DeprecationWarning"),
    pytest.mark.parametrize("storage", ENGINES, indirect=True, scope="session"),
]

SOON = 10  # poll interval in milliseconds
ACTIVE = ("queued", "in_progress", "requires_action", "cancelling")
TERMINAL = ("completed", "failed", "cancelled", "incomplete", "expired")
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
SCRIPTS = {
    "completed": "/say Done.",
    "failed": "/say So far\n/error invalid",
    "incomplete": "/repeat 300 word",
    "in_progress": "/say Wait\n/wait 3600\n/say Done.",
    "requires_action": "/call get_weather {}",
}


def assistant(sdk: OpenAI, **fields: Any) -> str:
    return sdk.beta.assistants.create(model="scripted", **fields).id


def thread(sdk: OpenAI, text: str) -> str:
    return sdk.beta.threads.create(messages=[{"role": "user", "content": text}]).id


def status(sdk: OpenAI, run: Run) -> str:
    return sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id).status


def reached(sdk: OpenAI, run: Run, *wanted: str) -> Run:
    """The run as soon as its status is one of ``wanted``."""

    def look() -> Run | None:
        found = sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        return found if found.status in wanted else None

    return cast(Run, eventually(look))


def run_in(sdk: OpenAI, wanted: str, thread_id: str | None = None) -> Run:
    """A run that was brought into the status ``wanted``, by nothing but the API (and the clock, to let it expire)."""
    script = SCRIPTS.get(wanted, SCRIPTS["in_progress"])
    thread_id = thread_id or thread(sdk, script)
    own = assistant(sdk, tools=[WEATHER])
    budget: dict[str, Any] = {"max_completion_tokens": 256} if wanted == "incomplete" else {}
    run = sdk.beta.threads.runs.create(thread_id, assistant_id=own, **budget)
    if wanted in ("cancelled", "expired"):
        reached(sdk, run, "in_progress")
        if wanted == "cancelled":
            sdk.beta.threads.runs.cancel(run.id, thread_id=thread_id)
        else:
            clock.advance(601)
    found = reached(sdk, run, wanted)
    if wanted == "in_progress":  # until it has begun its message
        eventually(lambda: sdk.beta.threads.messages.list(thread_id, run_id=run.id).data)
    return found


@pytest.fixture
def crowded(make_server: Callable[..., Server]) -> Iterator[tuple[OpenAI, Recorder]]:
    """A server that drives one run at a time and is busy with one: every further run stays as it is."""
    server = make_server(worker_concurrency=1, drain_seconds=0.0)
    with ExitStack() as stack:
        wire = stack.enter_context(Recorder(server.url))
        sdk = stack.enter_context(OpenAI(base_url=f"{wire.url}/v1", api_key=server.new_key(), max_retries=0))
        run_in(sdk, "in_progress")
        yield sdk, wire
        wire.check()


def refusal(call: Callable[[], object]) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        call()
    assert (caught.value.type, caught.value.param, caught.value.code) == ("invalid_request_error", None, None)
    return caught.value


@pytest.mark.behaviour("E2E-01", "SDK-01", "SDK-10", "LIST-17", "RUN-84", "RUN-86", "RUN-83")
def test_a_run_from_assistant_to_lists(sdk: OpenAI, wire: Recorder) -> None:
    made = sdk.beta.assistants.create(model="scripted", name="Weather", instructions="Answer briefly.")
    conversation = sdk.beta.threads.create()
    question = sdk.beta.threads.messages.create(conversation.id, role="user", content="/say It rains.")
    run = sdk.beta.threads.runs.create_and_poll(
        thread_id=conversation.id, assistant_id=made.id, poll_interval_ms=SOON, metadata={"round": "1"}
    )
    assert (run.status, run.assistant_id, run.instructions) == ("completed", made.id, "Answer briefly.")
    assert run.usage is not None
    assert run.usage.total_tokens == run.usage.prompt_tokens + run.usage.completion_tokens > 0

    (answer,) = sdk.beta.threads.messages.list(conversation.id, run_id=run.id)
    assert answer.content[0].type == "text"
    assert answer.content[0].text.value == "It rains."
    assert (answer.run_id, answer.assistant_id, answer.role) == (run.id, made.id, "assistant")
    everything = list(sdk.beta.threads.messages.list(conversation.id, order="asc", limit=1))
    assert [message.id for message in everything] == [question.id, answer.id]

    (step,) = sdk.beta.threads.runs.steps.list(run.id, thread_id=conversation.id)
    assert step.step_details.type == "message_creation"
    assert step.step_details.message_creation.message_id == answer.id
    assert step.usage is not None
    assert step.usage.total_tokens == run.usage.total_tokens
    assert sdk.beta.threads.runs.steps.retrieve(step.id, thread_id=conversation.id, run_id=run.id) == step

    changed = sdk.beta.threads.runs.update(run.id, thread_id=conversation.id, metadata={"reviewed": "yes"})
    assert changed.to_dict() == {**run.to_dict(), "metadata": {"reviewed": "yes"}}
    assert [listed.to_dict() for listed in sdk.beta.threads.runs.list(conversation.id)] == [changed.to_dict()]
    polls = [seen for seen in wire.exchanges if seen.sent.get("x-stainless-poll-helper") == "true"]
    assert polls
    assert {seen.sent["x-stainless-custom-poll-interval"] for seen in polls} == {str(SOON)}


@pytest.mark.behaviour("E2E-02", "SSE-02", "SSE-04", "SSE-07", "SSE-10", "SSE-26", "SSE-40", "STEP-18")
def test_the_same_as_a_stream(sdk: OpenAI, wire: Recorder) -> None:
    conversation, own = thread(sdk, "/say It rains today, and tomorrow."), assistant(sdk)
    with sdk.beta.threads.runs.create(conversation, assistant_id=own, stream=True) as stream:
        got = [(event.event, event.data.to_dict()) for event in stream]
    (seen,) = wire.streams()
    events = seen.events
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    assert got == events[:-1]
    last = dict(events)
    run = last["thread.run.completed"]
    assert sdk.beta.threads.runs.retrieve(run["id"], thread_id=conversation).to_dict() == run
    message = last["thread.message.completed"]
    assert sdk.beta.threads.messages.retrieve(message["id"], thread_id=conversation).to_dict() == message
    step = last["thread.run.step.completed"]
    stored = sdk.beta.threads.runs.steps.retrieve(step["id"], thread_id=conversation, run_id=run["id"]).to_dict()
    assert stored == {**step, "expires_at": None}
    assert step["expires_at"] == last["thread.run.created"]["expires_at"]


@pytest.mark.behaviour("E2E-03", "RUN-61", "RUN-62", "RUN-63", "RUN-64", "RUN-65", "RUN-70", "SDK-03")
def test_two_parallel_functions(sdk: OpenAI) -> None:
    conversation = thread(sdk, '/call get_weather {"city":"Oslo"}\n/call get_time {}\n/turn\n/say Cold and late.')
    own = assistant(sdk, tools=[WEATHER, CLOCK])
    run = sdk.beta.threads.runs.create_and_poll(thread_id=conversation, assistant_id=own, poll_interval_ms=SOON)
    assert run.required_action is not None
    calls = run.required_action.submit_tool_outputs.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", '{"city":"Oslo"}'),
        ("get_time", "{}"),
    ]
    runs = sdk.beta.threads.runs
    first = {"tool_call_id": calls[0].id, "output": "3 degrees"}
    outputs: Any = [{"tool_call_id": calls[1].id, "output": "23:00"}, first]
    partial: Any = [first]
    expected = f"Expected tool outputs for call_ids ['{calls[0].id}', '{calls[1].id}'], got ['{calls[0].id}']"
    error = refusal(lambda: runs.submit_tool_outputs(run.id, thread_id=conversation, tool_outputs=partial))
    assert expected in error.message
    assert status(sdk, run) == "requires_action"

    submitted = runs.submit_tool_outputs(run.id, thread_id=conversation, tool_outputs=outputs)
    assert (submitted.status, submitted.required_action) == ("queued", None)
    assert submitted.started_at == run.started_at
    error = refusal(lambda: runs.submit_tool_outputs(run.id, thread_id=conversation, tool_outputs=outputs))
    assert "do not accept tool outputs." in error.message
    done = runs.poll(run.id, thread_id=conversation, poll_interval_ms=SOON)
    assert done.status == "completed"
    tools, message = runs.steps.list(run.id, thread_id=conversation, order="asc")
    assert tools.step_details.type == "tool_calls"
    assert [call.function.output for call in tools.step_details.tool_calls if call.type == "function"] == [
        "3 degrees",
        "23:00",
    ]
    assert (tools.status, message.status) == ("completed", "completed")
    assert tools.usage is not None
    assert message.usage is not None
    assert done.usage is not None
    assert done.usage.total_tokens == tools.usage.total_tokens + message.usage.total_tokens


def locked(sdk: OpenAI, run: Run) -> None:
    """A message and a run are refused on the run's thread, in the words of the original."""
    error = refusal(lambda: sdk.beta.threads.messages.create(run.thread_id, role="user", content="More"))
    assert f"Can't add messages to {run.thread_id} while a run {run.id} is active." in error.message
    error = refusal(
        lambda: sdk.beta.threads.runs.create(
            run.thread_id,
            assistant_id=run.assistant_id,
            additional_messages=[{"role": "user", "content": "not kept"}],
        )
    )
    assert f"Thread {run.thread_id} already has an active run {run.id}." in error.message


@pytest.mark.behaviour("E2E-04", "LOCK-01", "LOCK-02", "LOCK-03", "LOCK-04", "LOCK-11")
@pytest.mark.parametrize("wanted", ACTIVE)
def test_an_active_run_locks_its_thread(
    wanted: str, sdk: OpenAI, crowded_or_not: tuple[OpenAI, Recorder] | None
) -> None:
    if crowded_or_not is not None:
        sdk, _ = crowded_or_not
    run = run_in(sdk, "queued" if wanted == "cancelling" else wanted)
    if wanted == "cancelling":
        assert sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id).status == "cancelling"
    before = sdk.beta.threads.messages.list(run.thread_id).data
    locked(sdk, run)
    assert status(sdk, run) == wanted
    assert sdk.beta.threads.messages.list(run.thread_id).data == before


@pytest.fixture
def crowded_or_not(request: pytest.FixtureRequest, wanted: str) -> tuple[OpenAI, Recorder] | None:
    """A run stays `queued` or `cancelling` only where nobody has time for it."""
    return request.getfixturevalue("crowded") if wanted in ("queued", "cancelling") else None


@pytest.mark.behaviour("E2E-04", "LOCK-10", "RUN-46")
@pytest.mark.parametrize("wanted", TERMINAL)
def test_the_lock_ends_with_the_terminal_status(wanted: str, sdk: OpenAI) -> None:
    run = run_in(sdk, wanted)
    sdk.beta.threads.messages.create(run.thread_id, role="user", content="/say Again.")
    again = sdk.beta.threads.runs.create_and_poll(
        thread_id=run.thread_id, assistant_id=run.assistant_id, poll_interval_ms=SOON
    )
    assert again.status == "completed"


@pytest.mark.behaviour("E2E-05", "RUN-40", "RUN-44", "RUN-45", "RUN-46", "STEP-16", "RUN-42")
def test_expiry_while_outputs_are_awaited(sdk: OpenAI) -> None:
    own = assistant(sdk, tools=[WEATHER])
    run = sdk.beta.threads.create_and_run_poll(
        assistant_id=own,
        thread={"messages": [{"role": "user", "content": "/call get_weather {}\n/turn\n/say Done."}]},
        extra_body={"loomgate": {"expires_after_seconds": 5}},
        poll_interval_ms=SOON,
    )
    assert run.required_action is not None
    assert run.expires_at == run.created_at + 5
    (call,) = run.required_action.submit_tool_outputs.tool_calls
    clock.advance(6)
    error = refusal(
        lambda: sdk.beta.threads.runs.submit_tool_outputs(
            run.id, thread_id=run.thread_id, tool_outputs=[{"tool_call_id": call.id, "output": "late"}]
        )
    )
    assert 'Runs in status "expired" do not accept tool outputs.' in error.message
    expired = sdk.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
    assert (expired.status, expired.required_action, expired.last_error) == ("expired", None, None)
    (step,) = sdk.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    assert step.status == "expired"
    assert step.expired_at is not None
    assert sdk.beta.threads.runs.create(run.thread_id, assistant_id=own).status == "queued"


def cancelled(sdk: OpenAI, run: Run) -> None:
    answer = sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert (answer.status, answer.cancelled_at) == ("cancelling", None)


@pytest.mark.behaviour("E2E-06", "RUN-50", "RUN-51", "RUN-53", "RUN-58", "STEP-16", "MSG-13")
@pytest.mark.parametrize("wanted", ["in_progress", "requires_action"])
def test_cancel(wanted: str, sdk: OpenAI) -> None:
    run = run_in(sdk, wanted)
    # Its step is what the cancelling has to close.
    eventually(lambda: list(sdk.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)))
    cancelled(sdk, run)
    done = reached(sdk, run, "cancelled")
    assert done.cancelled_at is not None
    assert done.required_action is None
    (step,) = sdk.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    assert step.status == "cancelled"
    assert step.cancelled_at is not None
    for message in sdk.beta.threads.messages.list(run.thread_id, run_id=run.id):
        assert message.status == "incomplete"
        assert message.incomplete_details is not None
        assert message.incomplete_details.reason == "run_cancelled"
        assert message.content[0].type == "text"
        assert message.content[0].text.value == "Wait"


@pytest.mark.behaviour("E2E-06", "RUN-52", "RUN-54", "RUN-56", "RUN-59")
def test_cancel_of_a_queued_run(crowded: tuple[OpenAI, Recorder]) -> None:
    sdk, _ = crowded
    run = run_in(sdk, "queued")
    cancelled(sdk, run)
    error = refusal(lambda: sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id))
    assert "Cannot cancel run with status 'cancelling'." in error.message
    clock.advance(601)
    assert status(sdk, run) in ("cancelled", "expired")


@pytest.mark.behaviour("E2E-06", "RUN-55")
@pytest.mark.parametrize("wanted", TERMINAL)
def test_a_terminal_run_is_not_cancelled(wanted: str, sdk: OpenAI) -> None:
    run = run_in(sdk, wanted)
    error = refusal(lambda: sdk.beta.threads.runs.cancel(run.id, thread_id=run.thread_id))
    assert f"Cannot cancel run with status '{wanted}'." in error.message
    assert status(sdk, run) == wanted


@pytest.mark.behaviour("E2E-07", "LIST-02", "LIST-03", "LIST-06", "LIST-07", "LIST-08", "LIST-11", "LIST-12", "LIST-19")
def test_paging_through_45_runs(sdk: OpenAI, wire: Recorder) -> None:
    conversation, own = thread(sdk, "/say Done."), assistant(sdk)
    runs = sdk.beta.threads.runs

    def one_more() -> Run:
        with runs.stream(thread_id=conversation, assistant_id=own) as stream:
            return stream.get_final_run()

    made = [one_more() for _ in range(45)]
    assert len({run.created_at for run in made}) < 45, "ties in created_at are part of the scenario"
    oldest_first = [run.id for run in made]
    before = len(wire.exchanges)

    def paged(order: Literal["asc", "desc"]) -> list[list[str]]:
        return [[run.id for run in page.data] for page in runs.list(conversation, limit=20, order=order).iter_pages()]

    ascending, descending = paged("asc"), paged("desc")
    assert [len(page) for page in ascending] == [len(page) for page in descending] == [20, 20, 5]
    assert functools.reduce(operator.iadd, ascending, []) == oldest_first
    assert functools.reduce(operator.iadd, descending, []) == oldest_first[::-1]
    # No page after the last one was asked for: has_more of the third said so.
    assert len(wire.exchanges) - before == 6

    # Back again with before: the 20 nearest, in the order asked for.
    back = runs.list(conversation, limit=20, order="desc", before=descending[2][0])
    assert ([run.id for run in back.data], back.has_more) == (descending[1], True)
    back = runs.list(conversation, limit=20, order="desc", before=descending[1][0])
    assert ([run.id for run in back.data], back.has_more) == (descending[0], False)

    # New runs while somebody pages through the old ones shift no page.
    seen: list[list[str]] = []
    for page in runs.list(conversation, limit=20, order="desc").iter_pages():
        seen.append([run.id for run in page.data])
        one_more()
    assert seen == descending


@pytest.mark.behaviour("E2E-09", "RUN-95", "RUN-92", "MSG-13")
def test_a_token_budget(sdk: OpenAI) -> None:
    own = assistant(sdk)
    run = sdk.beta.threads.runs.create_and_poll(
        thread_id=thread(sdk, SCRIPTS["incomplete"]), assistant_id=own, max_completion_tokens=256, poll_interval_ms=SOON
    )
    assert run.status == "incomplete"
    assert run.incomplete_details is not None
    assert run.incomplete_details.reason == "max_completion_tokens"
    assert run.usage is not None
    assert run.usage.completion_tokens == 256
    (message,) = sdk.beta.threads.messages.list(run.thread_id, run_id=run.id)
    assert message.status == "incomplete"
    assert message.incomplete_details is not None
    assert message.incomplete_details.reason == "max_tokens"
    assert message.content[0].type == "text"
    assert message.content[0].text.value.split() == ["word"] * 256
    (step,) = sdk.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    assert step.status == "completed"
    sdk.beta.threads.messages.create(run.thread_id, role="user", content="/say Go on.")
    again = sdk.beta.threads.runs.create_and_poll(thread_id=run.thread_id, assistant_id=own, poll_interval_ms=SOON)
    assert again.status == "completed"
