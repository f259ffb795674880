"""Assistants over HTTP (BEHAVIOUR ASST, V1, CONV-05, -06, -11)."""

from typing import Any

import pytest

from tests.support.server import Client, Server

_FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.behaviour("ASST-01", "RSN-02", "CONV-02", "CONV-04")
def test_a_minimal_assistant_shows_the_defaults(client: Client) -> None:
    made = client.post("/assistants", {"model": "gpt-4o"})
    assert isinstance(made["created_at"], int)
    assert made["id"].startswith("asst_")
    assert {key: value for key, value in made.items() if key not in ("id", "created_at")} == {
        "object": "assistant", "name": None, "description": None, "model": "gpt-4o", "instructions": None,
        "tools": [], "tool_resources": {}, "metadata": {}, "temperature": 1.0, "top_p": 1.0,
        "response_format": "auto", "reasoning_effort": None,
    }  # fmt: skip
    assert client.get("/assistants/" + made["id"]) == made


@pytest.mark.behaviour("ASST-02", "ASST-03", "ASST-04", "ASST-13")
def test_tools_are_normalised(client: Client) -> None:
    search = {"type": "file_search", "file_search": {"max_num_results": 7}}
    tools = [{"type": "code_interpreter"}, {"type": "file_search"}, search, _FUNCTION]
    made = client.assistant(tools=tools)
    ranking = {"ranker": "default_2024_08_21", "score_threshold": 0.0}
    assert made["tools"] == [
        {"type": "code_interpreter"},
        {"type": "file_search", "file_search": {"ranking_options": ranking}},
        {"type": "file_search", "file_search": {"max_num_results": 7, "ranking_options": ranking}},
        {"type": "function",
         "function": {"name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}},
    ]  # fmt: skip
    assert made["tool_resources"] == {"code_interpreter": {"file_ids": []}}
    kept = client.assistant(tool_resources={"file_search": {"vector_store_ids": []}})
    assert (kept["tools"], kept["tool_resources"]) == ([], {"file_search": {"vector_store_ids": []}})


@pytest.mark.behaviour("CONV-05", "ASST-07", "RUN-87")
def test_modify_changes_only_what_is_given(client: Client) -> None:
    before = client.assistant(
        name="a", instructions="i", tools=[_FUNCTION], metadata={"a": "1", "b": "2"}, temperature=0.5
    )
    path = "/assistants/" + before["id"]
    assert client.post(path, {}) == before
    assert client.post(path, {"name": "c"}) == {**before, "name": "c"}
    assert client.post(path, {"metadata": {"c": "3"}})["metadata"] == {"c": "3"}
    assert client.post(path, {"tools": [{"type": "code_interpreter"}]})["tools"] == [{"type": "code_interpreter"}]
    assert client.get(path)["tool_resources"] == {"code_interpreter": {"file_ids": []}}
    assert client.get(path)["temperature"] == 0.5


@pytest.mark.behaviour("CONV-11", "RUN-87")
def test_null_is_not_given_on_create_and_clears_on_modify(client: Client) -> None:
    fields: dict[str, Any] = {
        "name": "n", "description": "d", "instructions": "i", "reasoning_effort": "low", "tools": [_FUNCTION],
        "metadata": {"a": "1"}, "temperature": 0.2, "top_p": 0.3, "response_format": {"type": "json_object"},
        "tool_resources": {"code_interpreter": {"file_ids": []}},
    }  # fmt: skip
    nothing = dict.fromkeys(fields)
    bare = client.assistant()
    blank = {key: bare[key] for key in fields}
    made = client.assistant(**nothing)
    assert {key: made[key] for key in fields} == blank
    full = client.assistant(**fields)
    assert all(full[key] != blank[key] for key in fields)
    cleared = client.post("/assistants/" + full["id"], nothing)
    assert {key: cleared[key] for key in fields} == blank
    error = client.post("/assistants/" + full["id"], {"model": None}, status=400)
    assert (error["code"], error["param"]) == ("invalid_type", "model")


@pytest.mark.behaviour("CONV-06", "ASST-08", "ASST-10", "ERR-21", "ID-09")
def test_delete(client: Client) -> None:
    id = client.assistant()["id"]
    assert client.delete("/assistants/" + id) == {"id": id, "object": "assistant.deleted", "deleted": True}
    for method in ("GET", "POST", "DELETE"):
        error = client.call(method, "/assistants/" + id, status=404)
        assert error == {
            "message": f"No assistant found with id '{id}'.",
            "type": "invalid_request_error",
            "param": None,
            "code": None,
        }
    assert client.get("/assistants/thread_abc", status=404)["code"] is None


@pytest.mark.behaviour("ASST-12")
def test_names_may_be_shared_but_not_those_of_functions(client: Client) -> None:
    first, second = client.assistant(name="same"), client.assistant(name="same")
    assert first["id"] != second["id"]
    body = {"model": "scripted", "tools": [_FUNCTION, {"type": "code_interpreter"}, _FUNCTION]}
    assert client.post("/assistants", body, status=400)["param"] == "tools"
    assert client.post("/assistants/" + first["id"], {"tools": [_FUNCTION] * 2}, status=400)["param"] == "tools"


@pytest.mark.behaviour("ASST-05", "ASST-06", "ATT-07", "LIM-14", "LIM-15", "ERR-25", "ERR-26")
@pytest.mark.parametrize(
    ("resources", "status", "param"),
    [
        ({"code_interpreter": {"file_ids": ["file-abc"]}}, 404, "id"),
        ({"file_search": {"vector_store_ids": ["vs_abc"]}}, 404, None),
        ({"file_search": {"vector_stores": [{}]}}, 400, "tool_resources.file_search.vector_stores"),
        ({"file_search": {"vector_store_ids": ["vs_a"], "vector_stores": [{}]}}, 400, "tool_resources.file_search"),
        ({"file_search": {"vector_store_ids": ["a", "b"]}}, 400, "tool_resources.file_search.vector_store_ids"),
        ({"code_interpreter": {"file_ids": ["f"] * 21}}, 400, "tool_resources.code_interpreter.file_ids"),
    ],
)
@pytest.mark.parametrize("path", ["/assistants", "/threads"])
def test_resources_that_do_not_exist(
    client: Client, path: str, resources: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"tool_resources": resources} | ({"model": "scripted"} if path == "/assistants" else {})
    assert client.post(path, body, status=status)["param"] == param


@pytest.mark.behaviour("ERR-25")
def test_an_unknown_file_in_its_words(client: Client) -> None:
    body = {"tool_resources": {"code_interpreter": {"file_ids": ["file-abc"]}}}
    error = client.post("/threads", body, status=404)
    assert error["message"] == "No such File object: file-abc"


@pytest.mark.behaviour("ASST-05")
def test_the_helper_for_vector_stores_is_for_creation_only(client: Client) -> None:
    body = {"tool_resources": {"file_search": {"vector_stores": []}}}
    for path in ("/assistants/" + client.assistant()["id"], "/threads/" + client.thread()["id"]):
        assert client.post(path, body, status=400)["code"] == "unknown_parameter"


@pytest.mark.behaviour("ASST-11")
def test_any_model_name_will_do(client: Client) -> None:
    assert client.post("/assistants", {"model": "no-such-model/7b:free"})["model"] == "no-such-model/7b:free"
    assert client.post("/assistants", {"model": ""}, status=400)["param"] == "model"


@pytest.mark.behaviour("V1-01", "V1-03")
def test_version_one_is_gone(client: Client) -> None:
    assistant, thread = client.assistant(), client.thread("Hello")
    for path, body in (
        ("/assistants", {"model": "scripted", "file_ids": []}),
        ("/threads", {"file_ids": []}),
        (f"/threads/{thread['id']}/messages", {"role": "user", "content": "x", "file_ids": []}),
    ):
        error = client.post(path, body, status=400)
        assert (error["code"], error["param"]) == ("unknown_parameter", "file_ids")
    assert client.get(f"/assistants/{assistant['id']}/files", status=404)["message"].startswith("Invalid URL (GET /v1/")
    assert client.get(f"/threads/{thread['id']}/messages/msg_1/files", status=404)["param"] is None


def test_another_workspace_sees_nothing(server: Server, client: Client) -> None:
    other = server.client()
    assistant, thread = client.assistant()["id"], client.thread("Hello")["id"]
    message = client.get(f"/threads/{thread}/messages")["data"][0]["id"]
    for path in (f"/assistants/{assistant}", f"/threads/{thread}", f"/threads/{thread}/messages/{message}"):
        client.get(path)
        for method in ("GET", "POST", "DELETE"):
            other.call(method, path, status=404)
    other.get(f"/threads/{thread}/messages", status=404)
    other.get(f"/threads/{thread}/runs", status=404)
    other.post(f"/threads/{thread}/runs", {"assistant_id": assistant}, status=404)
    other.post("/threads/runs", {"assistant_id": assistant}, status=404)
    assert other.get("/assistants")["data"] == []
    assert client.get(f"/threads/{thread}")["id"] == thread
