"""Creating runs: defaults, effective values, what is refused (BEHAVIOUR 4.1, 7.1)."""

import json
from typing import Any

import pytest

from loomgate import clock
from tests.api.driving import (
    F,
    G,
    again,
    calls,
    error,
    load,
    play,
    settle,
    start,
    submit,
    text_of,
    thread_messages,
    waiting,
    written,
)
from tests.support import schema
from tests.support.server import BETA, Client
from tests.support.upstream import Fault, ModelEndpoint

_INCLUDE = "include[]=step_details.tool_calls[*].file_search.results[*].content"


@pytest.mark.behaviour("RUN-01", "RUN-02", "RUN-03", "RUN-07", "RUN-11", "RUN-14", "RSN-02")
def test_a_new_run_in_full(client: Client) -> None:
    assistant, thread = client.assistant(), client.thread("Hello")
    assert assistant["reasoning_effort"] is None
    before = clock.timestamp()
    run = client.post(f"/threads/{thread['id']}/runs", {"assistant_id": assistant["id"]})
    assert before <= run["created_at"] <= clock.timestamp()
    assert run == {
        "id": run["id"],
        "object": "thread.run",
        "created_at": run["created_at"],
        "assistant_id": assistant["id"],
        "thread_id": thread["id"],
        "status": "queued",
        "started_at": None,
        "expires_at": run["created_at"] + 600,
        "cancelled_at": None,
        "failed_at": None,
        "completed_at": None,
        "required_action": None,
        "last_error": None,
        "model": "scripted",
        "instructions": None,
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": None,
        "max_prompt_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "incomplete_details": None,
        "usage": None,
        "response_format": "auto",
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning_effort": None,
    }
    assert settle(client, run)["status"] == "completed"


_VALUES: dict[str, tuple[Any, Any]] = {
    "model": ("scripted-a", "scripted-b"),
    "instructions": ("Be brief.", "Be long."),
    "tools": ([F], [G]),
    "temperature": (0.1, 0.2),
    "top_p": (0.3, 0.4),
    "response_format": ({"type": "text"}, {"type": "json_object"}),
    "reasoning_effort": ("low", "high"),
}


def _tool_names(value: Any) -> Any:
    return [tool["function"]["name"] for tool in value] if isinstance(value, list) else value


@pytest.mark.behaviour("RUN-04")
@pytest.mark.parametrize("field", _VALUES)
def test_a_run_shows_the_assistants_value_or_its_own(client: Client, field: str) -> None:
    own, other = _VALUES[field]
    assistant = client.assistant(**{field: own})
    for given, shown in (({}, own), ({field: None}, own), ({field: other}, other)):
        run = start(client, "Hello", assistant_id=assistant["id"], **given)
        assert _tool_names(run[field]) == _tool_names(shown)
        assert settle(client, run)[field] == run[field]


@pytest.mark.behaviour("RUN-04", "RSN-03")
def test_effective_values_are_what_the_model_gets(standin: Client, endpoint: ModelEndpoint) -> None:
    theirs = {"model": "stand-in-1", "temperature": 0.1, "reasoning_effort": "low", "instructions": "Be brief."}
    assistant = standin.assistant(**theirs)
    play(standin, "Hello", assistant_id=assistant["id"])
    own = {"model": "stand-in-2", "temperature": 0.2, "top_p": 0.4, "reasoning_effort": "high", "instructions": "Long."}
    play(standin, "Hello", assistant_id=assistant["id"], **own)
    first, second = (request.body for request in endpoint.requests)
    assert (first["model"], first["temperature"], first["reasoning_effort"]) == ("stand-in-1", 0.1, "low")
    assert "top_p" not in first
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (second["model"], second["temperature"], second["top_p"]) == ("stand-in-2", 0.2, 0.4)
    assert second["reasoning_effort"] == "high"
    assert second["messages"][0] == {"role": "system", "content": "Long."}


@pytest.mark.behaviour("RUN-05")
def test_effective_values_are_frozen_at_creation(standin: Client, endpoint: ModelEndpoint) -> None:
    assistant = standin.assistant(model="stand-in", instructions="Old.", tools=[F], temperature=0.5)
    run = waiting(standin, assistant_id=assistant["id"], tools=None)
    frozen = ("model", "instructions", "tools", "temperature", "top_p", "response_format", "tool_resources")
    change = {"model": "scripted", "instructions": "New.", "tools": [], "temperature": 1.5, "top_p": 0.1}
    standin.post(f"/assistants/{assistant['id']}", change)
    assert {name: load(standin, run)[name] for name in frozen} == {name: run[name] for name in frozen}
    standin.delete(f"/assistants/{assistant['id']}")
    submit(standin, run)
    done = settle(standin, run)
    assert done["status"] == "completed"
    assert {name: done[name] for name in frozen} == {name: run[name] for name in frozen}
    assert done["assistant_id"] == assistant["id"]
    first, second = (request.body for request in endpoint.requests)
    for name in ("model", "tools", "temperature"):
        assert first[name] == second[name]
    assert "top_p" not in second
    assert second["messages"][0] == {"role": "system", "content": "Old."}


@pytest.mark.behaviour("RUN-06", "RUN-07")
def test_additional_instructions_come_after_the_effective_ones(standin: Client, endpoint: ModelEndpoint) -> None:
    assistant = standin.assistant(model="stand-in", instructions="Theirs.")
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"additional_instructions": "More."}, "Theirs.", "More."),
        ({"instructions": "Own.", "additional_instructions": "More."}, "Own.", "More."),
        ({"instructions": "Own."}, "Own.", "Own."),
    ]
    for given, begins, ends in cases:
        run = play(standin, "Hello", assistant_id=assistant["id"], **given)
        assert run["instructions"].startswith(begins)
        assert run["instructions"].endswith(ends)
        assert endpoint.requests[-1].body["messages"][0] == {"role": "system", "content": run["instructions"]}
    assert "Theirs." not in run["instructions"]
    bare = standin.assistant(model="stand-in")
    run = play(standin, "Hello", assistant_id=bare["id"], additional_instructions="Only.")
    assert run["instructions"] == "Only."
    assert play(standin, "Hello", assistant_id=bare["id"])["instructions"] is None
    assert [message["role"] for message in endpoint.requests[-1].body["messages"]] == ["user"]


@pytest.mark.behaviour("RUN-08")
def test_additional_messages_are_appended_before_the_run_starts(standin: Client, endpoint: ModelEndpoint) -> None:
    added = [
        {"role": "assistant", "content": "two", "metadata": {"k": "v"}},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    assistant = standin.assistant(model="stand-in")
    run = play(standin, "one", assistant_id=assistant["id"], additional_messages=added)
    assert [(m["role"], m["content"]) for m in endpoint.requests[-1].body["messages"]] == [
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
    found = thread_messages(standin, run)
    assert [text_of(message) for message in found] == ["one", "two", "three", "You said: three"]
    assert [message["run_id"] for message in found] == [None, None, None, run["id"]]
    assert found[1]["metadata"] == {"k": "v"}
    refused = standin.post(
        f"/threads/{run['thread_id']}/runs",
        {"assistant_id": assistant["id"], "additional_messages": [added[0], {"role": "system", "content": "x"}]},
        status=400,
    )
    assert (refused["code"], refused["param"]) == ("invalid_value", "additional_messages[1].role")
    assert len(thread_messages(standin, run)) == 4


@pytest.mark.behaviour("RUN-09")
def test_tool_resources_belong_to_thread_and_run_creation(client: Client) -> None:
    assistant, thread = client.assistant(instructions="Go."), client.thread("Hello")
    body = {"assistant_id": assistant["id"], "tool_resources": {"code_interpreter": {"file_ids": []}}}
    refused = client.post(f"/threads/{thread['id']}/runs", body, status=400)
    assert refused == error("Unknown parameter: 'tool_resources'.", param="tool_resources", code="unknown_parameter")
    run = client.post("/threads/runs", body)
    assert client.get(f"/threads/{run['thread_id']}")["tool_resources"] == body["tool_resources"]
    own = {"file_search": {"vector_store_ids": []}}
    run = client.post("/threads/runs", {**body, "thread": {"tool_resources": own}})
    assert client.get(f"/threads/{run['thread_id']}")["tool_resources"] == own


@pytest.mark.behaviour("RUN-10")
def test_no_tools_is_not_the_same_as_tools_not_given(standin: Client, endpoint: ModelEndpoint) -> None:
    assistant = standin.assistant(model="stand-in", tools=[F])
    for given, names in (({}, ["f"]), ({"tools": None}, ["f"]), ({"tools": []}, [])):
        run = play(standin, "Hello", assistant_id=assistant["id"], **given)
        assert _tool_names(run["tools"]) == names
        sent = endpoint.requests[-1].body
        assert [tool["function"]["name"] for tool in sent.get("tools", [])] == names


@pytest.mark.behaviour("RUN-12", "RUN-14")
def test_a_run_without_a_thread_makes_one(client: Client) -> None:
    assistant = client.assistant(instructions="Be brief.")
    run = client.post("/threads/runs", {"assistant_id": assistant["id"]})
    assert (run["object"], run["status"]) == ("thread.run", "queued")
    thread = client.get(f"/threads/{run['thread_id']}")
    assert (thread["metadata"], thread["tool_resources"]) == ({}, {})
    done = settle(client, run)
    assert done["status"] == "completed"
    assert [message["run_id"] for message in thread_messages(client, done)] == [run["id"]]
    given = {"messages": [{"role": "user", "content": "Hi"}], "metadata": {"a": "b"}}
    run = settle(client, client.post("/threads/runs", {"assistant_id": assistant["id"], "thread": given}))
    assert [text_of(message) for message in thread_messages(client, run)] == ["Hi", "You said: Hi"]
    assert client.get(f"/threads/{run['thread_id']}")["metadata"] == {"a": "b"}


@pytest.mark.behaviour("RUN-13", "RUN-14")
def test_a_run_needs_something_to_answer(client: Client) -> None:
    expected = error(
        "Run creation requires a Thread with a user message or an assistant with instructions.", code="invalid_thread"
    )
    bare, instructed = client.assistant(), client.assistant(instructions="Go.")
    empty = client.thread()
    only_assistant = client.thread(messages=[{"role": "assistant", "content": "Hi"}])
    for thread in (empty, only_assistant):
        url = f"/threads/{thread['id']}/runs"
        assert client.post(url, {"assistant_id": bare["id"]}, status=400) == expected
    assert client.post("/threads/runs", {"assistant_id": bare["id"]}, status=400) == expected
    assert settle(client, again(client, empty["id"], assistant_id=instructed["id"]))["status"] == "completed"
    assert start(client, "Hello", assistant_id=bare["id"])["status"] == "queued"
    added = [{"role": "user", "content": "Hello"}]
    run = again(client, only_assistant["id"], assistant_id=bare["id"], additional_messages=added)
    assert run["status"] == "queued"


@pytest.mark.behaviour("RUN-15")
@pytest.mark.parametrize("url", ["/threads/{}/runs", "/threads/runs"])
def test_the_assistant_has_to_exist(client: Client, url: str) -> None:
    id = "asst_" + "0" * 24
    where = url.format(client.thread("Hello")["id"])
    body = {"assistant_id": id, "instructions": "Go."}
    assert client.post(where, body, status=404)["message"] == f"No assistant found with id '{id}'."
    assert client.post(where, {"instructions": "Go."}, status=400) == error(
        "Missing required parameter: 'assistant_id'.", param="assistant_id", code="missing_required_parameter"
    )


@pytest.mark.behaviour("RUN-16")
def test_the_model_has_to_exist(client: Client) -> None:
    assistant = client.assistant(model="no-such-model")
    for given in (
        {"assistant_id": assistant["id"]},
        {"assistant_id": client.assistant()["id"], "model": "no-such-model"},
    ):
        refused = client.post(f"/threads/{client.thread('Hello')['id']}/runs", given, status=400)
        assert refused["message"].startswith("The model 'no-such-model' does not exist")
        assert (refused["param"], refused["code"]) == ("model", "model_not_found")


@pytest.mark.behaviour("RUN-17")
@pytest.mark.parametrize("field", ["max_prompt_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("url", ["/threads/{}/runs", "/threads/runs"])
def test_budgets_begin_at_256(client: Client, field: str, url: str) -> None:
    where = url.format(client.thread("Hello")["id"])
    body = {"assistant_id": client.assistant()["id"], "instructions": "Go."}
    assert client.post(where, {**body, field: 255}, status=400) == error(
        f"Invalid '{field}': integer below minimum value. Expected a value >= 256, but got 255 instead.",
        param=field,
        code="integer_below_min_value",
    )
    run = client.post(where, {**body, field: 256})
    assert run[field] == 256
    assert settle(client, run)["status"] == "completed"


@pytest.mark.behaviour("RUN-18")
@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ({"type": "last_messages"}, "truncation_strategy.last_messages", "missing_required_parameter"),
        ({"type": "last_messages", "last_messages": None}, "truncation_strategy.last_messages", None),
        ({"type": "last_messages", "last_messages": 0}, "truncation_strategy.last_messages", "integer_below_min_value"),
        ({"type": "first_messages"}, "truncation_strategy.type", "invalid_value"),
    ],
)
def test_truncation_strategies(client: Client, given: dict[str, Any], param: str, code: str | None) -> None:
    body = {"assistant_id": client.assistant()["id"], "truncation_strategy": given}
    refused = client.post(f"/threads/{client.thread('Hello')['id']}/runs", body, status=400)
    assert refused["param"] == param
    if code is not None:
        assert refused["code"] == code
    for right in (
        {"type": "auto"},
        {"type": "auto", "last_messages": None},
        {"type": "last_messages", "last_messages": 1},
    ):
        run = start(client, "Hello", truncation_strategy=right)
        assert run["truncation_strategy"] == {"last_messages": None, **right}


@pytest.mark.behaviour("RUN-20")
def test_tool_choices(client: Client) -> None:
    assistant = client.assistant(tools=[F])
    named = {"type": "function", "function": {"name": "f"}}
    for choice in ("none", "auto", "required", named):
        assert start(client, "/say Hi", assistant_id=assistant["id"], tool_choice=choice)["tool_choice"] == choice

    def refused(choice: object) -> dict[str, Any]:
        body = {"assistant_id": assistant["id"], "tool_choice": choice}
        return client.post(f"/threads/{client.thread('Hello')['id']}/runs", body, status=400)

    assert refused({"type": "function"})["param"] == "tool_choice.function"
    assert refused({"type": "function", "function": {}})["param"] == "tool_choice.function.name"
    assert refused({"type": "function", "function": {"name": "g"}})["param"] == "tool_choice.function.name"
    for hosted in ("code_interpreter", "file_search"):
        assert f"no tool of type '{hosted}'" in refused({"type": hosted})["message"]
    assert refused("sometimes")["param"] == "tool_choice"


@pytest.mark.behaviour("RUN-21")
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "g"}}])
def test_a_forcing_choice_is_for_the_first_turn(standin: Client, endpoint: ModelEndpoint, choice: Any) -> None:
    assistant = standin.assistant(model="stand-in", tools=[F, G])
    run = play(standin, "Hello", assistant_id=assistant["id"], tool_choice=choice)
    wanted = "f" if choice == "required" else "g"
    assert [call["function"]["name"] for call in calls(run)] == [wanted]
    submit(standin, run)
    assert settle(standin, run)["status"] == "completed"
    first, second = (request.body for request in endpoint.requests)
    assert first["tool_choice"] == choice
    assert "tool_choice" not in second
    assert second["tools"] == first["tools"]


@pytest.mark.behaviour("RUN-20")
def test_choosing_none_is_told_to_the_model(standin: Client, endpoint: ModelEndpoint) -> None:
    run = play(standin, "Hello", model="stand-in", tools=[F], tool_choice="none")
    assert run["status"] == "completed"
    assert endpoint.requests[-1].body["tool_choice"] == "none"


@pytest.mark.behaviour("RUN-22")
def test_without_parallel_calls_there_is_one_at_a_time(standin: Client, endpoint: ModelEndpoint) -> None:
    script = '/call f {"n": 1}\n/call g {"n": 2}\n/turn\n/say Done.'
    run = waiting(standin, script, model="stand-in", parallel_tool_calls=False)
    assert endpoint.requests[-1].body["parallel_tool_calls"] is False
    assert [call["function"]["name"] for call in calls(run)] == ["f"]
    submit(standin, run)
    run = settle(standin, run)
    assert [call["function"]["name"] for call in calls(run)] == ["g"]
    submit(standin, run)
    assert settle(standin, run)["status"] == "completed"


@pytest.mark.behaviour("RUN-22")
def test_a_model_that_calls_in_parallel_all_the_same_is_held_to_one(standin: Client, endpoint: ModelEndpoint) -> None:
    run = waiting(standin, "/call f\n/call g\n/turn\n/say Done.", model="plain", parallel_tool_calls=False)
    assert "parallel_tool_calls" not in endpoint.requests[-1].body
    assert [call["function"]["name"] for call in calls(run)] == ["f"]
    submit(standin, run)
    assert settle(standin, run)["status"] == "completed"


@pytest.mark.behaviour("RUN-23")
@pytest.mark.parametrize("given", [{}, {"stream": None}, {"stream": False}])
def test_a_run_is_plain_json_unless_a_stream_is_asked_for(client: Client, given: dict[str, Any]) -> None:
    body = {"assistant_id": client.assistant()["id"], "instructions": "Go.", **given}
    for url in (f"/v1/threads/{client.thread('Hello')['id']}/runs", "/v1/threads/runs"):
        response = client.raw("POST", url, json.dumps(body).encode(), BETA)
        assert response.headers["content-type"] == "application/json"
        assert response.json["object"] == "thread.run"


@pytest.mark.behaviour("RUN-24")
@pytest.mark.parametrize("streamed", [False, True])
def test_include_is_accepted_on_creation(client: Client, streamed: bool) -> None:
    url = f"/v1/threads/{client.thread('Hello')['id']}/runs?{_INCLUDE}"
    body = {"assistant_id": client.assistant()["id"], "stream": streamed}
    response = client.raw("POST", url, json.dumps(body).encode(), BETA, check=False)
    assert response.status == 200
    if streamed:
        assert response.body.endswith(b"event: done\ndata: [DONE]\n\n")
    else:
        schema.check_response("POST", url, 200, response.body, headers=response.headers)


@pytest.mark.behaviour("RSN-01")
def test_reasoning_effort_is_a_field_of_assistants_and_runs(standin: Client, endpoint: ModelEndpoint) -> None:
    assistant = standin.assistant(model="o3-mini", reasoning_effort="low")
    assert assistant["reasoning_effort"] == "low"
    changed = standin.post(f"/assistants/{assistant['id']}", {"reasoning_effort": "medium"})
    assert changed["reasoning_effort"] == "medium"
    run = play(standin, "Hello", assistant_id=assistant["id"])
    assert run["reasoning_effort"] == "medium"
    body = {"assistant_id": assistant["id"], "instructions": "Go.", "reasoning_effort": "high"}
    run = settle(standin, standin.post("/threads/runs", body))
    assert run["reasoning_effort"] == "high"
    assert [request.body["reasoning_effort"] for request in endpoint.requests] == ["medium", "high"]


@pytest.mark.behaviour("RSN-03")
def test_sampling_is_shown_always_and_sent_only_when_chosen(standin: Client, endpoint: ModelEndpoint) -> None:
    plain = standin.assistant(model="o3-mini")
    run = play(standin, "Hello", assistant_id=plain["id"])
    assert (run["temperature"], run["top_p"]) == (1.0, 1.0)
    assert not {"temperature", "top_p", "reasoning_effort"} & set(endpoint.requests[-1].body)
    run = play(standin, "Hello", assistant_id=plain["id"], temperature=1, top_p=1)
    assert (endpoint.requests[-1].body["temperature"], endpoint.requests[-1].body["top_p"]) == (1, 1)
    chosen = standin.assistant(model="o3-mini", temperature=1)
    play(standin, "Hello", assistant_id=chosen["id"])
    assert endpoint.requests[-1].body["temperature"] == 1
    standin.post(f"/assistants/{chosen['id']}", {"temperature": None})
    play(standin, "Hello", assistant_id=chosen["id"])
    assert "temperature" not in endpoint.requests[-1].body


@pytest.mark.behaviour("RSN-03")
def test_a_sampling_value_that_the_model_refuses_fails_the_run(standin: Client, endpoint: ModelEndpoint) -> None:
    said = "Unsupported value: 'temperature' does not support 0.2 with this model."
    body = {"error": {"message": said, "type": "invalid_request_error", "param": "temperature", "code": None}}
    endpoint.faults.append(Fault(status=400, body=body))
    run = start(standin, "Hello", model="o3-mini", temperature=0.2)
    assert run["status"] == "queued"
    failed = settle(standin, run)
    assert (failed["status"], failed["temperature"]) == ("failed", 0.2)
    assert failed["last_error"] == {"code": "invalid_prompt", "message": said}
    assert written(standin, run) == []


def test_what_the_model_is_asked_for_beside_words(standin: Client, endpoint: ModelEndpoint) -> None:
    """Formats, tools and pictures travel to the model as they were given."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"name": "weather", "description": "Looks out.", "parameters": parameters, "strict": True}
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object", "properties": {}}},
    }
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "low"}}
    thread = standin.post(
        "/threads", {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]}
    )
    run = again(
        standin,
        thread["id"],
        model="stand-in",
        response_format=wanted,
        tools=[{"type": "function", "function": tool}],
        tool_choice="none",
    )
    assert run["response_format"]["json_schema"]["schema"] == wanted["json_schema"]["schema"]
    done = settle(standin, run)
    assert json.loads(text_of(written(standin, done)[0])) == {}
    body = endpoint.requests[-1].body
    assert body["response_format"] == wanted
    assert body["tools"] == [{"type": "function", "function": tool}]
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]
    assert body["stream"] is True
