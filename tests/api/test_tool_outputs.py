"""Required action and tool outputs (BEHAVIOUR 4.5)."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.driving import (
    CALL,
    TERMINAL,
    F,
    G,
    Lives,
    calls,
    error,
    load,
    path,
    settle,
    steps,
    stream,
    submit,
    text_of,
    waiting,
    written,
)
from tests.support.server import Client
from tests.support.upstream import Fault, ModelEndpoint

_TWO = '/call f {"n": 1}\n/call g {"n": 2}\n/turn\n/say Done.'
_MOST = 512 * 1024


def _outputs(run: dict[str, Any]) -> list[dict[str, str]]:
    return [{"tool_call_id": call["id"], "output": "out"} for call in calls(run)]


def _send(client: Client, run: dict[str, Any], outputs: list[Any], status: int = 200) -> Any:
    return client.post(path(run, "/submit_tool_outputs"), {"tool_outputs": outputs}, status=status)


@pytest.mark.behaviour("RUN-60", "RUN-61")
def test_the_required_action_lists_the_calls_of_the_current_step_in_order(client: Client) -> None:
    run = waiting(client, '/call g {"a": [1, "x"]}\n/call f\n/call g {}\n/turn\n/call f {"b": 2}\n/turn\n/say Done.')
    found = calls(run)
    assert run["required_action"] == {
        "type": "submit_tool_outputs",
        "submit_tool_outputs": {
            "tool_calls": [
                {"id": found[0]["id"], "type": "function", "function": {"name": "g", "arguments": '{"a": [1, "x"]}'}},
                {"id": found[1]["id"], "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": found[2]["id"], "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ]
        },
    }
    assert len({call["id"] for call in found}) == 3
    submit(client, run)
    run = settle(client, run)
    assert [call["function"] for call in calls(run)] == [{"name": "f", "arguments": '{"b": 2}'}]
    assert calls(run)[0]["id"] not in {call["id"] for call in found}


@pytest.mark.behaviour("RUN-60")
def test_arguments_are_the_models_own_text(standin: Client, endpoint: ModelEndpoint) -> None:
    """Not JSON, with an id that is not ours: the text stays, the id does not."""
    text = '{"half": '
    call = {"id": "their-id", "type": "function", "function": {"name": "f", "arguments": text}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    endpoint.faults.append(Fault(status=200, body=whole))
    run = waiting(standin, "Hello", model="stand-in")
    (found,) = calls(run)
    assert found["function"] == {"name": "f", "arguments": text}
    assert found["id"].startswith("call_")
    assert steps(standin, run)[0]["step_details"]["tool_calls"][0]["function"]["arguments"] == text
    submit(standin, run)
    assert settle(standin, run)["status"] == "completed"
    assert endpoint.requests[-1].body["messages"][1]["tool_calls"][0]["function"]["arguments"] == text


@pytest.mark.behaviour("RUN-63", "RUN-70", "RUN-66", "RUN-62", "STEP-09", "STEP-10")
def test_outputs_complete_the_step_and_reach_the_model(standin: Client, endpoint: ModelEndpoint) -> None:
    run = waiting(standin, "/usage prompt=5 completion=3\n" + _TWO, model="stand-in")
    (step,) = steps(standin, run)
    assert (step["status"], step["usage"], step["completed_at"]) == ("in_progress", None, None)
    assert [call["function"]["output"] for call in step["step_details"]["tool_calls"]] == [None, None]
    first, second = calls(run)
    backwards = [{"tool_call_id": second["id"], "output": "two"}, {"tool_call_id": first["id"], "output": "one"}]
    answer = _send(standin, run, backwards)
    assert answer == {**run, "status": "queued", "required_action": None}
    step = steps(standin, run)[0]
    assert (step["status"], step["usage"]["total_tokens"]) == ("completed", 8)
    assert step["completed_at"] >= step["created_at"]
    assert step["step_details"]["tool_calls"] == [
        {"id": first["id"], "type": "function", "function": {"name": "f", "arguments": '{"n": 1}', "output": "one"}},
        {"id": second["id"], "type": "function", "function": {"name": "g", "arguments": '{"n": 2}', "output": "two"}},
    ]
    assert settle(standin, run)["status"] == "completed"
    told = endpoint.requests[-1].body["messages"]
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in told[1]["tool_calls"]] == [first["id"], second["id"]]
    assert [(m["tool_call_id"], m["content"]) for m in told[2:]] == [(first["id"], "one"), (second["id"], "two")]


@pytest.mark.behaviour("RUN-64")
@pytest.mark.parametrize(
    "status", ["queued", "in_progress", "cancelling", "cancelled", "failed", "completed", "incomplete", "expired"]
)
def test_outputs_are_for_waiting_runs(lives: Lives, status: str) -> None:
    client, run = lives(status)
    refused = _send(client, run, [{"tool_call_id": "call_x", "output": "out"}], 400)
    assert refused == error(f'Runs in status "{status}" do not accept tool outputs.')
    assert load(client, run) == run
    lives.end(client, run)


@pytest.mark.behaviour("RUN-64")
def test_the_same_outputs_again_are_refused(client: Client) -> None:
    run = waiting(client, "/call f\n/turn\n/wait 500")
    submit(client, run)
    settle(client, run, "in_progress")
    assert submit(client, run, status=400) == error('Runs in status "in_progress" do not accept tool outputs.')
    client.post(path(run, "/cancel"))


@pytest.mark.behaviour("RUN-62", "RUN-65", "RUN-66", "ERR-32")
def test_outputs_come_all_together_and_for_the_right_calls(client: Client) -> None:
    run = waiting(client, _TWO)
    a, b = (call["id"] for call in calls(run))
    wrong = [[a], [b], [], [a, b, b], [a, a], [a, b, "call_x"], [a, "call_x"]]
    for ids in wrong:
        refused = _send(client, run, [{"tool_call_id": id, "output": "out"} for id in ids], 400)
        assert refused == error(f"Expected tool outputs for call_ids ['{a}', '{b}'], got {ids!r}")
        assert load(client, run) == run
    _send(client, run, [{"tool_call_id": b, "output": "2"}, {"tool_call_id": a, "output": "1"}])
    assert settle(client, run)["status"] == "completed"


@pytest.mark.behaviour("RUN-67")
@pytest.mark.parametrize("given", [{}, {"output": None}, {"output": ""}])
def test_an_output_may_be_missing(client: Client, given: dict[str, Any]) -> None:
    run = waiting(client)
    (call,) = calls(run)
    _send(client, run, [{"tool_call_id": call["id"], **given}])
    assert steps(client, run)[0]["step_details"]["tool_calls"][0]["function"]["output"] == ""
    assert settle(client, run)["status"] == "completed"


@pytest.mark.behaviour("RUN-67", "RUN-68")
def test_what_an_item_must_be(client: Client) -> None:
    run = waiting(client, _TWO)
    first, second = _outputs(run)
    assert _send(client, run, [{"output": "out"}, second], 400) == error(
        "Missing required parameter: 'tool_outputs[0].tool_call_id'.",
        param="tool_outputs[0].tool_call_id",
        code="missing_required_parameter",
    )
    for value in ({"a": 1}, 5, True, ["x"]):
        refused = _send(client, run, [{**first, "output": value}, second], 400)
        assert (refused["code"], refused["param"]) == ("invalid_type", "tool_outputs[0].output")
    assert _send(client, run, [first, {**second, "output": 5}], 400)["param"] == "tool_outputs[1].output"
    assert load(client, run) == run


@pytest.mark.behaviour("RUN-69")
def test_outputs_together_have_a_limit(client: Client) -> None:
    run = waiting(client, _TWO)
    first, second = _outputs(run)
    large = "é" * (_MOST // 4)  # bytes count, not characters
    refused = _send(client, run, [{**first, "output": large}, {**second, "output": large + "x"}], 400)
    assert refused["type"] == "invalid_request_error"
    assert refused["param"] == "tool_outputs"
    assert load(client, run) == run
    _send(client, run, [{**first, "output": large}, {**second, "output": large}])
    assert steps(client, run)[0]["step_details"]["tool_calls"][1]["function"]["output"] == large


@pytest.mark.behaviour("RUN-64", "RUN-63")
def test_of_many_submissions_at_once_exactly_one_counts(client: Client) -> None:
    run = waiting(client, "/call f\n/turn\n/say Done.")
    (call,) = calls(run)

    def send(number: int) -> int:
        body = {"tool_outputs": [{"tool_call_id": call["id"], "output": str(number)}]}
        response = client.raw("POST", "/v1" + path(run, "/submit_tool_outputs"), json.dumps(body).encode())
        if response.status == 400:
            assert response.error["message"].endswith("do not accept tool outputs.")
        return response.status

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(send, range(10)))
    assert sorted(found) == [200] + [400] * 9
    assert settle(client, run)["status"] == "completed"
    step = steps(client, run)[0]
    assert step["step_details"]["tool_calls"][0]["function"]["output"] == str(found.index(200))


@pytest.mark.behaviour("RUN-64", "RUN-56", "RUN-31")
def test_outputs_that_race_a_cancel(client: Client) -> None:
    """Whoever comes second meets the status that the first one left."""
    for _ in range(10):
        run = waiting(client, "/call f\n/turn\n/wait 500")
        body = {"tool_outputs": [{"tool_call_id": calls(run)[0]["id"], "output": "out"}]}
        requests = [("/submit_tool_outputs", body), ("/cancel", {})]

        def send(request: tuple[str, Any], run: dict[str, Any] = run) -> int:
            encoded = json.dumps(request[1]).encode()
            return client.raw("POST", "/v1" + path(run, request[0]), encoded).status

        with ThreadPoolExecutor(2) as pool:
            submitted, cancelled = pool.map(send, requests)
        assert cancelled == 200
        run = settle(client, run, *TERMINAL)
        assert run["status"] == "cancelled"
        expected = ["completed"] if submitted == 200 else ["cancelled"]
        assert [step["status"] for step in steps(client, run)] == expected


@pytest.mark.behaviour("RUN-71")
def test_a_run_may_ask_many_times(client: Client) -> None:
    run = waiting(client, "/call f\n/turn\n" * 5 + "/say Done.")
    rounds = 0
    while run["status"] == "requires_action":
        submit(client, run)
        run = settle(client, run)
        rounds += 1
    assert (run["status"], rounds) == ("completed", 5)
    assert [step["type"] for step in steps(client, run)] == ["tool_calls"] * 5 + ["message_creation"]
    assert [text_of(message) for message in written(client, run)] == ["Done."]


@pytest.mark.behaviour("RUN-60", "RUN-63")
def test_a_stream_goes_on_after_the_outputs(client: Client) -> None:
    thread = client.thread(CALL)
    body = {"assistant_id": client.assistant()["id"], "tools": [F, G]}
    first = stream(client, f"/threads/{thread['id']}/runs", body)
    name, run = first[-1]
    assert name == "thread.run.requires_action"
    assert load(client, run) == run
    second = stream(client, path(run, "/submit_tool_outputs"), {"tool_outputs": _outputs(run)})
    assert second[0][0] == "thread.run.step.completed"
    assert second[-1][0] == "thread.run.completed"
    assert load(client, run) == second[-1][1]
