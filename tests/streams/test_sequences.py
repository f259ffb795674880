"""The exact sequences of events (BEHAVIOUR 10.3), as bytes over HTTP: plain, with functions, and every early end."""

from collections.abc import Iterator
from typing import Any

import pytest

from loomgate import clock
from loomgate.settings import Provider
from tests.support import sse
from tests.support.background import Background
from tests.support.eventually import eventually
from tests.support.server import Client, Server, serving
from tests.support.upstream import Fault, ModelEndpoint
from tests.support.viewer import Viewer, ask, path_of, streamed

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}

BEGUN = ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]
STEP_OPEN = ["thread.run.step.created", "thread.run.step.in_progress"]
MESSAGE_OPEN = [*STEP_OPEN, "thread.message.created", "thread.message.in_progress", "thread.message.delta"]
MESSAGE_CLOSED = ["thread.message.completed", "thread.run.step.completed"]
TOOLS = [*STEP_OPEN, "thread.run.step.delta"]


def submit(client: Client, run: dict[str, Any], *outputs: str) -> Viewer:
    calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    answers = [{"tool_call_id": call["id"], "output": out} for call, out in zip(calls, outputs, strict=True)]
    return Viewer(client, "POST", path_of(run) + "/submit_tool_outputs", {"tool_outputs": answers, "stream": True})


def last(events: list[tuple[str, Any]], name: str) -> Any:
    return [data for found, data in events if found == name][-1]


@pytest.mark.behaviour("SSE-42", "SSE-20", "STEP-03", "STEP-10", "RUN-34", "RUN-35")
def test_a_function_run(client: Client) -> None:
    with streamed(client, '/call get_weather {"city": "Oslo"}\n/turn\n/say Cold.', tools=[WEATHER]) as viewer:
        events = viewer.events()
    assert sse.names(events) == sse.SEQUENCES["SSE-42/1"]
    deltas = [data["delta"]["step_details"]["tool_calls"] for name, data in events if name == "thread.run.step.delta"]
    run = last(events, "thread.run.requires_action")
    (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    opening = {"name": "get_weather", "arguments": "", "output": None}
    assert deltas[0] == [{"index": 0, "id": call["id"], "type": "function", "function": opening}]
    assert all(set(delta["function"]) == {"arguments"} and "id" not in delta for (delta,) in deltas[1:])
    assert "".join(delta["function"]["arguments"] for (delta,) in deltas) == call["function"]["arguments"]
    created = last(events, "thread.run.step.created")
    assert created["step_details"] == {"type": "tool_calls", "tool_calls": []}
    (step,) = client.get(path_of(run) + "/steps")["data"]
    assert (step["status"], step["usage"]) == ("in_progress", None)

    with submit(client, run, "3 degrees") as viewer:
        resumed = viewer.events()
    assert sse.names(resumed) == sse.SEQUENCES["SSE-42/2"]
    name, step = resumed[0]
    assert (name, step["id"]) == ("thread.run.step.completed", created["id"])
    assert step["step_details"]["tool_calls"][0]["function"]["output"] == "3 degrees"
    assert step["usage"]["total_tokens"] > 0
    final = last(resumed, "thread.run.completed")
    assert resumed[1][1]["expires_at"] == run["expires_at"]
    assert client.get(path_of(run)) == final


@pytest.mark.behaviour("SSE-43", "STEP-05", "RUN-61", "RUN-66")
def test_parallel_calls_share_a_step(client: Client) -> None:
    script = '/call get_weather {"city": "Oslo"}\n/call get_time {"zone": "CET"}\n/call get_weather {}\n/turn\n/say OK'
    with streamed(client, script, tools=[WEATHER, CLOCK]) as viewer:
        events = viewer.events()
    assert sse.names(events) == sse.SEQUENCES["SSE-42/1"]
    indexes = [
        call["index"]
        for name, data in events
        if name == "thread.run.step.delta"
        for call in data["delta"]["step_details"]["tool_calls"]
    ]
    assert indexes == sorted(indexes)
    assert set(indexes) == {0, 1, 2}
    run = last(events, "thread.run.requires_action")
    calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time", "get_weather"]
    run["required_action"]["submit_tool_outputs"]["tool_calls"] = calls[::-1]  # the order does not matter
    with submit(client, run, "c", "b", "a") as viewer:
        step = viewer.events()[0][1]
    assert [call["function"]["output"] for call in step["step_details"]["tool_calls"]] == ["a", "b", "c"]


@pytest.mark.behaviour("RUN-22")
def test_without_parallel_calls_each_round_asks_once(client: Client) -> None:
    script = "/call get_weather {}\n/call get_time {}"
    with streamed(client, script, tools=[WEATHER, CLOCK], parallel_tool_calls=False) as viewer:
        run = last(viewer.events(), "thread.run.requires_action")
    assert len(run["required_action"]["submit_tool_outputs"]["tool_calls"]) == 1


@pytest.mark.behaviour("SSE-44", "RUN-71", "RUN-32")
def test_the_model_calls_again(client: Client) -> None:
    script = "/call get_weather {}\n/turn\n/call get_time {}\n/turn\n/say Both known."
    with streamed(client, script, tools=[WEATHER, CLOCK]) as viewer:
        run = last(viewer.events(), "thread.run.requires_action")
    with submit(client, run, "3") as viewer:
        events = viewer.events()
    again = ["thread.run.step.completed", *BEGUN[1:], *TOOLS, "thread.run.requires_action", "done"]
    assert sse.names(events) == again
    run = last(events, "thread.run.requires_action")
    (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert call["function"]["name"] == "get_time"
    with submit(client, run, "noon") as viewer:
        assert sse.names(viewer.events()) == sse.SEQUENCES["SSE-42/2"]
    steps = client.get(path_of(run) + "/steps?order=asc")["data"]
    assert [step["type"] for step in steps] == ["tool_calls", "tool_calls", "message_creation"]


@pytest.mark.behaviour("STEP-04", "SSE-25")
def test_text_before_calls_is_a_message_of_its_own(client: Client) -> None:
    script = "/say One moment.\n/call get_weather {}\n/turn\n/say Cold."
    with streamed(client, script, tools=[WEATHER]) as viewer:
        events = viewer.events()
    assert sse.names(events) == [
        *BEGUN, *MESSAGE_OPEN, *MESSAGE_CLOSED, *TOOLS, "thread.run.requires_action", "done"
    ]  # fmt: skip
    with submit(client, last(events, "thread.run.requires_action"), "3") as viewer:
        assert sse.names(viewer.events()) == sse.SEQUENCES["SSE-42/2"]


@pytest.mark.behaviour("SSE-48", "RUN-98", "RUN-97", "STEP-16", "MSG-13")
def test_failed_in_the_middle_of_a_message(client: Client) -> None:
    with streamed(client, "/say So far\n/error invalid") as viewer:
        events = viewer.events()
    assert sse.names(events) == [
        *BEGUN, *MESSAGE_OPEN, "thread.message.incomplete", "thread.run.step.failed", "thread.run.failed", "done"
    ]  # fmt: skip
    message, run = last(events, "thread.message.incomplete"), last(events, "thread.run.failed")
    assert message["incomplete_details"] == {"reason": "run_failed"}
    assert message["content"][0]["text"]["value"] == "So far"
    assert run["last_error"]["code"] == "invalid_prompt"
    assert last(events, "thread.run.step.failed")["last_error"]["code"] == "server_error"
    assert client.get(path_of(run)) == run


@pytest.mark.behaviour("SSE-48", "RUN-97")
def test_failed_before_anything_was_said(client: Client) -> None:
    with streamed(client, "/error quota") as viewer:
        events = viewer.events()
    assert sse.names(events) == [*BEGUN, "thread.run.failed", "done"]
    assert last(events, "thread.run.failed")["last_error"]["code"] == "rate_limit_exceeded"


@pytest.mark.behaviour("SSE-48", "STEP-16")
def test_failed_in_the_middle_of_a_call(client: Client) -> None:
    with streamed(client, '/call get_weather {"a": 1}\n/error 400', tools=[WEATHER]) as viewer:
        events = viewer.events()
    assert sse.names(events) == [*BEGUN, *TOOLS, "thread.run.step.failed", "thread.run.failed", "done"]


@pytest.mark.behaviour("SSE-49", "RUN-58", "RUN-33")
def test_cancelled_from_another_connection(client: Client) -> None:
    with streamed(client, "/say So far\n/wait 3600\n/say and on") as viewer:
        viewer.until("thread.message.delta", times=2)
        run = client.get("/threads/" + viewer.body.decode().split('"thread_id":"')[1].split('"')[0] + "/runs")["data"][
            0
        ]
        assert client.post(path_of(run) + "/cancel")["status"] == "cancelling"
        events = viewer.events()
    assert sse.names(events) == [
        *BEGUN, *MESSAGE_OPEN,
        "thread.run.cancelling", "thread.message.incomplete", "thread.run.step.cancelled", "thread.run.cancelled",
        "done",
    ]  # fmt: skip
    assert last(events, "thread.message.incomplete")["incomplete_details"] == {"reason": "run_cancelled"}
    assert last(events, "thread.run.cancelling")["cancelled_at"] is None
    assert last(events, "thread.run.cancelled")["cancelled_at"] is not None


@pytest.mark.behaviour("SSE-49", "RUN-52", "RUN-53")
def test_cancelled_with_nothing_open(client: Client) -> None:
    with streamed(client, "/wait 3600") as viewer:
        run = viewer.until("thread.run.in_progress")
        client.post(path_of(run) + "/cancel")
        events = viewer.events()
    assert sse.names(events) == [*BEGUN, "thread.run.cancelling", "thread.run.cancelled", "done"]


@pytest.mark.behaviour("SSE-50", "RUN-95", "RUN-93")
def test_incomplete(client: Client) -> None:
    with streamed(client, "/repeat 300 word", max_completion_tokens=256) as viewer:
        events = viewer.events()
    assert sse.names(events) == [
        *BEGUN, *MESSAGE_OPEN,
        "thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete", "done",
    ]  # fmt: skip
    assert last(events, "thread.message.incomplete")["incomplete_details"] == {"reason": "max_tokens"}
    assert last(events, "thread.run.incomplete")["incomplete_details"] == {"reason": "max_completion_tokens"}


@pytest.mark.behaviour("SSE-51", "RUN-41", "RUN-43", "STEP-16")
def test_expired_while_streaming(client: Client) -> None:
    with streamed(client, "/say So far\n/wait 3600", loomgate={"expires_after_seconds": 60}) as viewer:
        viewer.until("thread.message.delta", times=2)
        clock.advance(60)
        events = viewer.events()
    assert sse.names(events) == [
        *BEGUN, *MESSAGE_OPEN, "thread.message.incomplete", "thread.run.step.expired", "thread.run.expired", "done"
    ]  # fmt: skip
    assert last(events, "thread.message.incomplete")["incomplete_details"] == {"reason": "run_expired"}
    assert last(events, "thread.run.step.expired")["expired_at"] is not None
    assert client.get(path_of(last(events, "thread.run.expired")))["status"] == "expired"


@pytest.mark.behaviour("SSE-52", "SSE-53", "LOCK-09", "THR-05")
def test_the_thread_is_deleted_under_its_stream(client: Client) -> None:
    with streamed(client, "/say So far\n/wait 3600") as viewer:
        run = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
        assert client.delete(f"/threads/{run['thread_id']}")["deleted"] is True
        events = viewer.events()
    assert sse.names(events)[-3:] == ["thread.message.delta", "error", "done"]
    assert run["thread_id"] in last(events, "error")["error"]["message"]
    client.get(path_of(run), status=404)


@pytest.mark.behaviour("SSE-40", "SSE-24", "MSG-04")
def test_a_refusal_is_streamed_as_one(client: Client) -> None:
    with streamed(client, "/refuse I will not do that.") as viewer:
        events = viewer.events()
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    message = last(events, "thread.message.completed")
    assert message["content"] == [{"type": "refusal", "refusal": "I will not do that."}]


@pytest.mark.behaviour("SSE-40", "SSE-26")
def test_an_answer_without_a_word(client: Client) -> None:
    """A model may end its turn at once; then there is nothing to stream, and still a whole run."""
    with streamed(client, "/finish stop") as viewer:
        events = viewer.events()
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    empty = {"value": "", "annotations": []}
    assert last(events, "thread.message.completed")["content"] == [{"type": "text", "text": empty}]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ModelEndpoint]]:
    """A server whose models are those of a stand-in endpoint."""
    model = ModelEndpoint()
    # Its address is part of the settings, so it has to listen before the server's loop runs: on a loop of its own.
    with Background() as background:
        background.run(model.start())
        provider = Provider(name="standin", vendor="openai-compatible", base_url=model.base_url, default=True)
        with serving(tmp_path_factory.mktemp("endpoint") / "data", providers={"standin": provider}) as server:
            yield server, model
        background.run(model.stop())


@pytest.mark.behaviour("SSE-54")
def test_the_first_events_do_not_wait_for_the_model(endpoint: tuple[Server, ModelEndpoint]) -> None:
    client, model = endpoint[0].client(), endpoint[1]
    model.faults.append(Fault(wait=300.0))
    path, body = ask(client, "/say At last.", model="gpt-4o")
    with Viewer(client, "POST", path, body) as viewer:
        assert viewer.headers["cache-control"] == "no-cache"
        assert viewer.headers["x-accel-buffering"] == "no"
        assert viewer.until("thread.run.created")["status"] == "queued"
        viewer.until("thread.run.in_progress")
        eventually(lambda: model.requests)
        clock.advance(300)
        events = viewer.events()
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    assert last(events, "thread.message.completed")["content"][0]["text"]["value"] == "At last."


@pytest.mark.behaviour("SSE-22", "SSE-26", "SSE-43")
def test_a_turn_that_comes_byte_by_byte(endpoint: tuple[Server, ModelEndpoint]) -> None:
    client, model = endpoint[0].client(), endpoint[1]
    model.faults.append(Fault(split=True))
    script = '/say Grüße, 世界 🌍\n/call get_weather {"city": "Tromsø"}\n/turn\n/say Kalt.'
    with streamed(client, script, model="gpt-4o", tools=[WEATHER]) as viewer:
        events = viewer.events()
    assert last(events, "thread.message.completed")["content"][0]["text"]["value"] == "Grüße, 世界 🌍"
    run = last(events, "thread.run.requires_action")
    (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert call["function"]["arguments"] == '{"city": "Tromsø"}'


@pytest.mark.behaviour("SSE-48", "RUN-97", "RUN-98")
@pytest.mark.parametrize("fault", ["/error 400", "/error quota"])
def test_the_endpoint_gives_up_in_the_middle(endpoint: tuple[Server, ModelEndpoint], fault: str) -> None:
    with streamed(endpoint[0].client(), f"/repeat 50 word\n{fault}", model="gpt-4o") as viewer:
        events = viewer.events()
    assert sse.names(events)[-2:] == ["thread.run.failed", "done"]
    code = "rate_limit_exceeded" if fault.endswith("quota") else "invalid_prompt"
    assert last(events, "thread.run.failed")["last_error"]["code"] == code
    assert last(events, "thread.message.incomplete")["incomplete_details"] == {"reason": "run_failed"}


@pytest.mark.behaviour("SSE-48", "RUN-97")
def test_the_endpoint_does_not_speak_the_language(endpoint: tuple[Server, ModelEndpoint]) -> None:
    client, model = endpoint[0].client(), endpoint[1]
    model.faults.append(Fault(malformed=True))
    with streamed(client, "/repeat 50 word", model="gpt-4o") as viewer:
        events = viewer.events()
    assert sse.names(events) == [*BEGUN, "thread.run.failed", "done"]
    assert last(events, "thread.run.failed")["last_error"]["code"] == "server_error"


@pytest.mark.behaviour("SSE-26", "SSE-40")
def test_the_endpoint_breaks_off(endpoint: tuple[Server, ModelEndpoint]) -> None:
    client, model = endpoint[0].client(), endpoint[1]
    before = len(model.requests)
    model.faults.append(Fault(cut_after=2900))
    with streamed(client, "/repeat 50 word", model="gpt-4o") as viewer:
        events = viewer.events()
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    assert last(events, "thread.message.completed")["content"][0]["text"]["value"] == " ".join(["word"] * 50)
    assert len(model.requests) == before + 2
