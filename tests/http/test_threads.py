"""Threads and messages over HTTP (BEHAVIOUR THR, MSG, ATT)."""

from typing import Any

import pytest

from tests.support.server import Client

_PNG = "data:image/png;base64,iVBORw0KGgo="


def _message(client: Client, body: dict[str, Any], status: int = 200) -> Any:
    return client.post(f"/threads/{client.thread()['id']}/messages", body, status=status)


@pytest.mark.behaviour("THR-01", "THR-03", "ID-01")
def test_an_empty_thread(client: Client) -> None:
    made = client.post("/threads")
    assert made == {
        "id": made["id"], "object": "thread", "created_at": made["created_at"], "metadata": {}, "tool_resources": {}
    }  # fmt: skip
    assert len(made["id"]) == len("thread_") + 24
    assert client.get("/threads/" + made["id"]) == made


@pytest.mark.behaviour("THR-02", "MSG-20", "RUN-08")
def test_first_messages_keep_their_order(client: Client) -> None:
    thread = client.thread("one", "two", "three")
    found = client.get(f"/threads/{thread['id']}/messages?order=asc")["data"]
    assert [message["content"][0]["text"]["value"] for message in found] == ["one", "two", "three"]
    assert [message["created_at"] for message in found] == sorted(message["created_at"] for message in found)
    assert client.get(f"/threads/{thread['id']}/messages")["data"] == found[::-1]


@pytest.mark.behaviour("THR-04", "ASST-07", "RUN-87", "CONV-11")
def test_modify_thread(client: Client) -> None:
    thread = client.thread(metadata={"a": "1"}, tool_resources={"code_interpreter": {"file_ids": []}})
    path = "/threads/" + thread["id"]
    assert client.post(path, {}) == thread
    assert client.post(path, {"metadata": {"b": "2"}}) == {**thread, "metadata": {"b": "2"}}
    both = {"code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": []}}
    search = {"file_search": {"vector_store_ids": []}}
    assert client.post(path, {"tool_resources": search})["tool_resources"] == both
    cleared = client.post(path, {"tool_resources": None, "metadata": None})
    assert (cleared["tool_resources"], cleared["metadata"]) == ({}, {})
    assert client.post(path, {"messages": []}, status=400)["code"] == "unknown_parameter"


@pytest.mark.behaviour("THR-05", "CONV-06", "ERR-20", "LIST-23")
def test_delete_thread(client: Client) -> None:
    id = client.thread("Hello")["id"]
    message = client.get(f"/threads/{id}/messages")["data"][0]["id"]
    assert client.delete("/threads/" + id) == {"id": id, "object": "thread.deleted", "deleted": True}
    for path in ("", "/messages", f"/messages/{message}", "/runs", "/runs/run_x", "/runs/run_x/steps"):
        assert client.get(f"/threads/{id}{path}", status=404)["message"] == f"No thread found with id '{id}'."
    client.delete("/threads/" + id, status=404)


@pytest.mark.behaviour("THR-06")
def test_listing_threads_is_an_extension(client: Client) -> None:
    ids = [client.thread(metadata={"user": user, "n": str(n)})["id"] for n, user in enumerate("aab")]
    assert [thread["id"] for thread in client.get("/threads")["data"]] == ids[::-1]
    found = client.get("/threads?metadata%5Buser%5D=a&order=asc&limit=1")
    assert [thread["id"] for thread in found["data"]] == ids[:1]
    assert found["has_more"] is True
    assert [t["id"] for t in client.get("/threads?metadata[user]=a&metadata[n]=1")["data"]] == [ids[1]]
    client.post("/threads/" + ids[0], {"metadata": {"user": "c"}})
    assert [t["id"] for t in client.get("/threads?metadata[user]=a")["data"]] == [ids[1]]
    assert client.get("/threads?metadata[user]=none")["data"] == []


def test_the_rule_for_an_active_run_is_an_option_of_the_thread(client: Client) -> None:
    thread = client.thread(loomgate={"on_active_run": "enqueue"})
    assert thread["loomgate"] == {"on_active_run": "enqueue"}
    error = client.post("/threads", {"loomgate": {"on_active_run": "explode"}}, status=400)
    assert (error["param"], error["code"]) == ("loomgate.on_active_run", "invalid_value")
    assert "loomgate" not in client.post("/threads/" + thread["id"], {"loomgate": None})


@pytest.mark.behaviour("MSG-02", "MSG-03", "MSG-09", "MSG-10", "MSG-12")
@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("content", ["Hi", [{"type": "text", "text": "Hi"}]])
def test_a_new_message(client: Client, role: str, content: object) -> None:
    made = _message(client, {"role": role, "content": content})
    assert {key: made[key] for key in made if key not in ("id", "thread_id")} == {
        "object": "thread.message", "created_at": made["created_at"], "completed_at": made["created_at"],
        "status": "completed", "incomplete_details": None, "incomplete_at": None, "role": role,
        "content": [{"type": "text", "text": {"value": "Hi", "annotations": []}}],
        "assistant_id": None, "run_id": None, "attachments": [], "metadata": {},
    }  # fmt: skip
    assert client.get(f"/threads/{made['thread_id']}/messages/{made['id']}") == made


@pytest.mark.behaviour("MSG-04", "MSG-05", "MSG-06")
@pytest.mark.parametrize(
    "url", ["https://example.com/a.png?x=1", "http://example.com/A.JPG", "https://example.com/picture", _PNG]
)
def test_images_by_url(client: Client, url: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    made = _message(client, {"role": "user", "content": parts})
    assert made["content"][0] == {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    parts[0]["image_url"]["detail"] = "low"  # type: ignore[index]
    assert _message(client, {"role": "user", "content": parts})["content"][0]["image_url"]["detail"] == "low"


@pytest.mark.behaviour("MSG-06")
@pytest.mark.parametrize(
    "url",
    ["ftp://example.com/a.png", "a.png", "https://", "https://example.com/a.svg", "https://example.com/a.pdf",
     "data:image/bmp;base64,AAAA", "data:text/plain,hello", "data:image/png;base64", "http://[", ""],
)  # fmt: skip
def test_urls_that_are_no_images(client: Client, url: str) -> None:
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
    error = _message(client, {"role": "user", "content": content}, 400)
    assert (error["param"], error["code"]) == ("content[1].image_url.url", "invalid_value")


@pytest.mark.behaviour("MSG-01", "MSG-07", "MSG-08", "LIM-13")
@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"role": "system", "content": "x"}, "role", "invalid_value"),
        ({"role": "user", "content": ""}, "content", "invalid_value"),
        ({"role": "user", "content": []}, "content", "invalid_value"),
        ({"role": "user", "content": None}, "content", "invalid_type"),
        ({"role": "user", "content": [{"type": "text", "text": {"value": "x"}}]}, "content[0].text", "invalid_type"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, "content[0].type", "invalid_value"),
        ({"role": "user", "content": "é" * 256_001}, "content", "string_above_max_length"),
        (
            {"role": "user", "content": [{"type": "text", "text": "é" * 256_001}]},
            "content[0].text",
            "string_above_max_length",
        ),
    ],
)
def test_messages_that_are_refused(client: Client, body: dict[str, Any], param: str, code: str) -> None:
    error = _message(client, body, 400)
    assert (error["param"], error["code"]) == (param, code)
    nested = client.post("/threads", {"messages": [{"role": "user", "content": "x"}, body]}, status=400)
    assert (nested["param"], nested["code"]) == (f"messages[1].{param}", code)
    run = {"assistant_id": client.assistant()["id"], "additional_messages": [body]}
    error = client.post(f"/threads/{client.thread()['id']}/runs", run, status=400)
    assert (error["param"], error["code"]) == (f"additional_messages[0].{param}", code)
    run = {"assistant_id": run["assistant_id"], "thread": {"messages": [body]}}
    assert client.post("/threads/runs", run, status=400)["param"] == f"thread.messages[0].{param}"


@pytest.mark.behaviour("MSG-08", "LIM-13", "LIM-59")
def test_the_longest_message(client: Client) -> None:
    text = "😀" * 256_000
    assert _message(client, {"role": "user", "content": text})["content"][0]["text"]["value"] == text
    error = _message(client, {"role": "user", "content": text + "x"}, 400)
    assert error["message"] == (
        "Invalid 'content': string too long. Expected a string with maximum length 256000, "
        "but got a string with length 256001 instead."
    )


@pytest.mark.behaviour("ATT-07", "ATT-08", "ATT-09")
def test_attachments(client: Client) -> None:
    def attached(attachments: object, status: int) -> Any:
        return _message(client, {"role": "user", "content": "x", "attachments": attachments}, status)

    assert attached([], 200)["attachments"] == []
    assert attached(None, 200)["attachments"] == []
    assert attached([{"tools": []}], 400)["param"] == "attachments[0].file_id"
    for given in ({"file_id": "file-1"}, {"file_id": "file-1", "tools": [{"type": "file_search"}]}):
        error = attached([given], 404)
        assert (error["message"], error["param"]) == ("No such File object: file-1", "id")
    options = {"type": "file_search", "file_search": {}}
    assert attached([{"file_id": "f", "tools": [options]}], 400)["param"] == "attachments[0].tools[0].file_search"
    part = {"type": "image_file", "image_file": {"file_id": "file-2"}}
    assert _message(client, {"role": "user", "content": [part]}, 404)["message"] == "No such File object: file-2"


@pytest.mark.behaviour("MSG-16", "RUN-87", "RUN-88", "CONV-08")
def test_modify_message(client: Client) -> None:
    made = _message(client, {"role": "user", "content": "x", "metadata": {"a": "1", "b": "2"}})
    path = f"/threads/{made['thread_id']}/messages/{made['id']}"
    assert client.post(path, {}) == made
    assert client.post(path, {"metadata": {"a": "3"}}) == {**made, "metadata": {"a": "3"}}
    assert client.get(path)["metadata"] == {"a": "3"}
    assert client.post(path, {"metadata": None})["metadata"] == {}
    assert client.post(path, {"content": "y"}, status=400)["param"] == "content"
    error = client.post(path, {"metadata": {"modified": True}}, status=400)
    assert error == {
        "message": "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
        "type": "invalid_request_error",
        "param": "metadata.modified",
        "code": "invalid_type",
    }


@pytest.mark.behaviour("MSG-17", "MSG-19", "CONV-06", "ERR-24")
def test_delete_message(client: Client) -> None:
    made, other = _message(client, {"role": "user", "content": "x"}), client.thread()["id"]
    id = made["id"]
    error = client.delete(f"/threads/{other}/messages/{id}", status=404)
    assert error["message"] == f"No message found with id '{id}'."
    client.get(f"/threads/{other}/messages/{id}", status=404)
    path = f"/threads/{made['thread_id']}/messages"
    assert client.delete(f"{path}/{id}") == {"id": id, "object": "thread.message.deleted", "deleted": True}
    assert client.get(path)["data"] == []
    for method in ("GET", "POST", "DELETE"):
        client.call(method, f"{path}/{id}", status=404)
