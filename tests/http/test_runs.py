"""What a new run takes over, and what creating it refuses (BEHAVIOUR RUN-01 to RUN-20; running is tested elsewhere)."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from loomgate.errors import ApiError
from loomgate.http import checks
from loomgate.http.body import decode
from loomgate.wire.runs import RunSpec, SubmitToolOutputs
from tests.support.server import Client, Server

_WAIT = {"messages": [{"role": "user", "content": "/wait 60"}]}


def _function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _create(client: Client, assistant: dict[str, Any], status: int = 200, **fields: Any) -> Any:
    body = {"assistant_id": assistant["id"], "thread": _WAIT, **fields}
    return client.post("/threads/runs", body, status=status)


@pytest.mark.behaviour("RUN-01", "RUN-02", "RUN-03", "RUN-07", "RUN-11", "RUN-12")
def test_a_new_run_shows_the_defaults(client: Client) -> None:
    run = _create(client, client.assistant())
    assert run["thread_id"].startswith("thread_")
    assert {key: run[key] for key in run if key not in ("id", "thread_id", "assistant_id", "created_at")} == {
        "object": "thread.run", "status": "queued", "started_at": None, "expires_at": run["created_at"] + 600,
        "cancelled_at": None, "failed_at": None, "completed_at": None, "required_action": None, "last_error": None,
        "model": "scripted", "instructions": None, "tools": [], "tool_resources": {}, "metadata": {},
        "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": None, "max_prompt_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None}, "incomplete_details": None, "usage": None,
        "response_format": "auto", "tool_choice": "auto", "parallel_tool_calls": True, "reasoning_effort": None,
    }  # fmt: skip


@pytest.mark.behaviour("RUN-04", "RUN-05", "RUN-06", "RUN-10", "RSN-01", "CONV-11")
def test_a_run_inherits_and_overrides(client: Client) -> None:
    inherited = {
        "model": "scripted", "instructions": "Be kind.", "temperature": 0.5, "top_p": 0.25,
        "response_format": {"type": "json_object"}, "reasoning_effort": "low",
    }  # fmt: skip
    assistant = client.assistant(**inherited, tools=[_function("f")])
    run = _create(client, assistant)
    assert {key: run[key] for key in inherited} == inherited
    assert run["tools"] == assistant["tools"]
    assert _create(client, assistant, **dict.fromkeys(inherited), tools=None)["tools"] == assistant["tools"]
    own = {
        "model": "scripted", "instructions": "Be brief.", "temperature": 0, "top_p": 1, "response_format": "auto",
        "reasoning_effort": "high", "tools": [], "metadata": {"a": "b"}, "max_prompt_tokens": 256,
        "max_completion_tokens": 256, "truncation_strategy": {"type": "last_messages", "last_messages": 1},
        "tool_choice": "none", "parallel_tool_calls": False,
    }  # fmt: skip
    run = _create(client, assistant, **own)
    assert {key: run[key] for key in own} == own
    path = f"/threads/{run['thread_id']}/runs/{run['id']}"
    client.delete("/assistants/" + assistant["id"])
    assert client.get(path)["instructions"] == "Be brief."


@pytest.mark.behaviour("RUN-06", "RUN-08")
def test_additions(client: Client) -> None:
    assistant = client.assistant(instructions="Be kind.")
    thread = client.thread()["id"]
    messages = [{"role": "user", "content": "/wait 60"}, {"role": "assistant", "content": "Hm."}]
    body = {"assistant_id": assistant["id"], "additional_instructions": "Rhyme.", "additional_messages": messages}
    run = client.post(f"/threads/{thread}/runs", body)
    assert run["instructions"] == "Be kind.\nRhyme."
    found = client.get(f"/threads/{thread}/messages?order=asc")["data"]
    assert [(item["role"], item["run_id"]) for item in found] == [("user", None), ("assistant", None)]
    body = {"assistant_id": client.assistant()["id"], "additional_instructions": "Rhyme."}
    thread = client.thread("/wait 60")["id"]
    assert client.post(f"/threads/{thread}/runs", body)["instructions"] == "Rhyme."


@pytest.mark.behaviour("RUN-09")
def test_resources_go_to_the_new_thread(client: Client) -> None:
    search = {"file_search": {"vector_store_ids": []}}
    files = {"code_interpreter": {"file_ids": []}}
    body = {"assistant_id": client.assistant(instructions="Hi.")["id"], "tool_resources": search}
    for thread, expected in (({}, search), ({"tool_resources": files}, files), ({"tool_resources": None}, search)):
        run = client.post("/threads/runs", {**body, "thread": thread})
        assert client.get("/threads/" + run["thread_id"])["tool_resources"] == expected
    error = client.post("/threads/thread_x/runs", body, status=404)
    thread_id = client.thread("x")["id"]
    error = client.post(f"/threads/{thread_id}/runs", body, status=400)
    assert (error["code"], error["param"]) == ("unknown_parameter", "tool_resources")


@pytest.mark.behaviour("RSN-03")
def test_only_chosen_sampling_values_are_kept_for_the_model(server: Server, client: Client) -> None:
    def kept(assistant: dict[str, Any], **fields: Any) -> tuple[float | None, float | None]:
        spec: RunSpec = server.run(server.store.runs.spec(_create(client, assistant, **fields)["id"]))
        return spec.temperature, spec.top_p

    plain, chosen = client.assistant(), client.assistant(temperature=1.0, top_p=0.5)
    assert kept(plain) == (None, None)
    assert kept(plain, temperature=1.0) == (1.0, None)
    assert kept(chosen) == (1.0, 0.5)
    assert kept(chosen, top_p=0.75) == (1.0, 0.75)
    client.post("/assistants/" + chosen["id"], {"temperature": None})
    assert kept(chosen) == (None, 0.5)
    client.post("/assistants/" + chosen["id"], {"name": "x"})
    assert kept(chosen) == (None, 0.5)


@pytest.mark.behaviour("RUN-16")
def test_models_that_nobody_offers(client: Client) -> None:
    assistant = client.assistant()
    error = _create(client, assistant, 400, model="no-such-model")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"].startswith("The model 'no-such-model' does not exist")
    assert _create(client, client.assistant(model="nope"), 400)["code"] == "model_not_found"
    assert _create(client, client.assistant(model="nope"), model="scripted")["model"] == "scripted"


@pytest.mark.parametrize("tool", ["code_interpreter", "file_search"])
def test_tools_that_cannot_be_run_yet(client: Client, tool: str) -> None:
    assistant = client.assistant(tools=[{"type": tool}])
    for error in (_create(client, assistant, 400), _create(client, client.assistant(), 400, tools=[{"type": tool}])):
        assert (error["code"], error["param"]) == ("unsupported_tool", "tools")
        assert tool in error["message"]
    assert _create(client, assistant, tools=[_function("f")])["status"] == "queued"


@pytest.mark.behaviour("RUN-17", "RUN-18", "RUN-20", "LIM-10", "LIM-11", "ASST-12")
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"max_prompt_tokens": 255}, "max_prompt_tokens", "integer_below_min_value"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens", "integer_above_max_value"),
        ({"truncation_strategy": {"type": "last_messages"}}, "truncation_strategy.last_messages",
         "missing_required_parameter"),
        ({"truncation_strategy": {"type": "last_messages", "last_messages": 0}}, "truncation_strategy.last_messages",
         "integer_below_min_value"),
        ({"truncation_strategy": {"type": "auto", "last_messages": 3}}, "truncation_strategy.last_messages",
         "invalid_value"),
        ({"tool_choice": "f"}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "missing_required_parameter"),
        ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name",
         "missing_required_parameter"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name",
         "invalid_value"),
        ({"tool_choice": {"type": "code_interpreter"}}, "tool_choice", "invalid_value"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "invalid_value"),
        ({"tools": [_function("f"), _function("f")]}, "tools", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"loomgate": {"expires_after_seconds": 86401}}, "loomgate.expires_after_seconds", "integer_above_max_value"),
        ({"loomgate": {"expires_after_seconds": 0}}, "loomgate.expires_after_seconds", "integer_below_min_value"),
        ({"loomgate": {"foo": 1}}, "loomgate.foo", "unknown_parameter"),
    ],
)  # fmt: skip
def test_runs_that_are_refused(client: Client, fields: dict[str, Any], param: str, code: str) -> None:
    error = _create(client, client.assistant(tools=[_function("f")]), 400, **fields)
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.behaviour("RUN-20")
def test_a_named_choice_that_fits(client: Client) -> None:
    choice = {"type": "function", "function": {"name": "f"}}
    assert _create(client, client.assistant(tools=[_function("f")]), tool_choice=choice)["tool_choice"] == choice


@pytest.mark.behaviour("RUN-47")
def test_the_time_a_run_has(make_server: Callable[..., Server]) -> None:
    client = make_server(run_ttl_seconds=7, run_ttl_max_seconds=9).client()
    run = _create(client, client.assistant())
    assert run["expires_at"] == run["created_at"] + 7
    run = _create(client, client.assistant(), loomgate={"expires_after_seconds": 9})
    assert run["expires_at"] == run["created_at"] + 9
    assert _create(client, client.assistant(), 400, loomgate={"expires_after_seconds": 10})["message"] == (
        "Invalid 'loomgate.expires_after_seconds': integer above maximum value. Expected a value <= 9, "
        "but got 10 instead."
    )


@pytest.mark.behaviour("RUN-67", "RUN-68", "RUN-69")
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tool_outputs": [{"output": "x"}]}, "tool_outputs[0].tool_call_id", "missing_required_parameter"),
        ({"tool_outputs": [{"tool_call_id": "a", "output": {}}]}, "tool_outputs[0].output", "invalid_type"),
        ({"tool_outputs": [{"tool_call_id": "a", "output": 5}]}, "tool_outputs[0].output", "invalid_type"),
        ({"tool_outputs": [{"tool_call_id": 5}]}, "tool_outputs[0].tool_call_id", "invalid_type"),
        ({}, "tool_outputs", "missing_required_parameter"),
        ({"tool_outputs": [{"tool_call_id": c, "output": "é" * 131_072} for c in "abc"]}, "tool_outputs", None),
    ],
)
def test_tool_outputs_that_are_refused(body: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(ApiError) as caught:
        checks.outputs(decode(msgspec.json.encode(body), SubmitToolOutputs))
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


@pytest.mark.behaviour("RUN-67", "RUN-69")
def test_tool_outputs_that_just_fit() -> None:
    outputs = [
        {"tool_call_id": "a", "output": "é" * 262_144},
        {"tool_call_id": "b"},
        {"tool_call_id": "c", "output": None},
    ]
    checks.outputs(decode(msgspec.json.encode({"tool_outputs": outputs}), SubmitToolOutputs))
