"""Bodies: what is refused, with which words, code and place (BEHAVIOUR CONV-07 to -11, section 8)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import invalid
from tests.support.server import Client, Server

_FUNCTION = {"type": "function", "function": {"name": "f"}}

# Operation -> its path and a body that is right.
_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "createAssistant": ("/assistants", {"model": "scripted"}),
    "modifyAssistant": ("/assistants/{assistant}", {}),
    "createThread": ("/threads", {}),
    "modifyThread": ("/threads/{thread}", {}),
    "createMessage": ("/threads/{thread}/messages", {"role": "user", "content": "Hello"}),
    "modifyMessage": ("/threads/{thread}/messages/{message}", {}),
    "createRun": ("/threads/{thread}/runs", {"assistant_id": "{assistant}"}),
    "createThreadAndRun": ("/threads/runs", {"assistant_id": "{assistant}"}),
}


@pytest.fixture(scope="module")
def place(server: Server) -> tuple[Client, dict[str, str]]:
    client = server.client()
    thread = client.thread("Hello")
    message = client.get(f"/threads/{thread['id']}/messages")["data"][0]
    return client, {"assistant": client.assistant()["id"], "thread": thread["id"], "message": message["id"]}


@pytest.mark.behaviour(
    "CONV-08", "LIM-01", "LIM-02", "LIM-06", "LIM-07", "LIM-08", "LIM-09", "LIM-10", "LIM-11", "LIM-50", "LIM-51",
    "LIM-52", "LIM-53", "LIM-54", "LIM-55", "LIM-56", "LIM-57", "LIM-58", "LIM-59", "RUN-17", "RUN-88", "V1-02",
)  # fmt: skip
@pytest.mark.parametrize("operation", _BASES)
def test_every_violation_of_the_schema_is_refused_by_name(operation: str, place: tuple[Client, dict[str, str]]) -> None:
    client, ids = place
    path, base = _BASES[operation]
    filled = {key: value.format(**ids) for key, value in base.items()}
    wrong: list[str] = []
    for row in invalid.invalid_bodies(operation, filled):
        response = client.raw("POST", "/v1" + path.format(**ids), json.dumps(row.body).encode())
        found = (
            response.status,
            response.json.get("error", {}).get("param"),
            response.json.get("error", {}).get("code"),
        )
        expected = (400, row.param, row.code)
        if row.features and response.status in (400, 404):
            continue
        if row.code is None:
            found, expected = found[:2], expected[:2]
        if found != expected:
            wrong.append(f"{row.name}: {found}, expected {expected}: {response.body[:200]!r}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.behaviour("CONV-07")
@pytest.mark.parametrize("body", [b"", b"{}", b" \n"])
def test_an_empty_body_is_an_empty_object(client: Client, body: bytes) -> None:
    assert client.raw("POST", "/v1/threads", body).json["object"] == "thread"


@pytest.mark.behaviour("CONV-10")
@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{'model': 'x'}",
        b'{"model": "scripted",}',
        b'{"model": "scripted"} {}',
        b'{"model": "scripted", "temperature": NaN}',
        b'{"model": "scripted\xff"}',
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "scripted", "name": "\\ud800"}',
        b'{"model": "scripted", "name": "\\ud800x"}',
        b'{"model": "scripted", "metadata": {"\\udfff": "x"}}',
        b'\xef\xbb\xbf{"model": "scripted"}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_json_is_refused(client: Client, body: bytes) -> None:
    response = client.raw("POST", "/v1/assistants", body)
    assert response.status == 400
    assert response.error["type"] == "invalid_request_error"
    assert response.error["param"] is None
    assert response.error["code"] is None
    assert response.error["message"].startswith("We could not parse the JSON body of your request.")


@pytest.mark.behaviour("LIM-57")
@pytest.mark.parametrize("body", [b"[]", b'"text"', b"12", b"null", b"true"])
def test_a_body_has_to_be_an_object(client: Client, body: bytes) -> None:
    error = client.raw("POST", "/v1/assistants", body).error
    assert (error["code"], error["param"]) == ("invalid_type", None)
    assert "expected an object" in error["message"]


_DEEP = json.loads('{"a":' * 99 + "1" + "}" * 99)
_TOO_DEEP = {"a": _DEEP}


@pytest.mark.behaviour("ERR-71")
@pytest.mark.parametrize(
    "fields",
    [
        b'"tools": [{"type": "function", "function": {"name": "f", "parameters": %b}}]',
        b'"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": %b}}',
    ],
)
def test_free_form_json_survives_or_is_refused(client: Client, fields: bytes) -> None:
    body = b'{"model": "scripted", ' + fields + b"}"
    kept = {"deep": _DEEP["a"], "big": 10**300, "neg": -1.5e-300, "text": "é\u0000😀", "none": None}
    made = client.raw("POST", "/v1/assistants", body % json.dumps(kept).encode())
    assert made.status == 200
    assert client.get("/assistants/" + made.json["id"]) == made.json
    inner = (
        made.json["tools"][0]["function"]["parameters"]
        if made.json["tools"]
        else (made.json["response_format"]["json_schema"]["schema"])
    )
    assert inner == kept
    for bad in (json.dumps(_TOO_DEEP).encode(), b'{"a":1%b}' % (b"0" * 5000), b'{"a":1e999}'):
        refused = client.raw("POST", "/v1/assistants", body % bad)
        assert refused.status == 400, refused.body
        assert refused.error["code"] == "invalid_value"


def test_of_a_key_given_twice_the_last_value_counts(client: Client) -> None:
    body = b'{"model":"other","model":"scripted","metadata":{"a":"1","a":"2"}}'
    made = client.raw("POST", "/v1/assistants", body).json
    assert (made["model"], made["metadata"]) == ("scripted", {"a": "2"})


@pytest.mark.behaviour("LIM-50", "LIM-51")
def test_metadata_errors_in_their_words(client: Client) -> None:
    many = {f"k{n}": "v" for n in range(17)}
    error = client.post("/threads", {"metadata": many}, status=400)
    assert error == {
        "message": "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, "
        "but got an object with 17 properties instead.",
        "type": "invalid_request_error",
        "param": "metadata",
        "code": "object_above_max_properties",
    }
    many.pop("k0")
    assert client.post("/threads", {"metadata": many})["metadata"] == many


@pytest.mark.behaviour("LIM-59", "LIM-01", "LIM-02", "LIM-03", "LIM-06", "LIM-52")
@pytest.mark.parametrize(("field", "limit"), [("name", 256), ("description", 512), ("instructions", 256_000)])
def test_lengths_are_code_points_and_bounds_inclusive(client: Client, field: str, limit: int) -> None:
    text = "😀" * limit
    assert client.assistant(**{field: text})[field] == text
    error = client.post("/assistants", {"model": "scripted", field: text + "é"}, status=400)
    assert error["code"] == "string_above_max_length"
    assert error["message"] == (
        f"Invalid '{field}': string too long. Expected a string with maximum length {limit}, "
        f"but got a string with length {limit + 1} instead."
    )


@pytest.mark.behaviour("LIM-53", "LIM-07", "LIM-35")
@pytest.mark.parametrize("name", ["two words", "é", "", "trailing\n", "a.b"])
def test_function_names(client: Client, name: str) -> None:
    tool = {"type": "function", "function": {"name": name}}
    error = client.post("/assistants", {"model": "scripted", "tools": [_FUNCTION, tool]}, status=400)
    assert (error["code"], error["param"]) == ("invalid_value", "tools[1].function.name")
    assert error["message"] == (
        "Invalid 'tools[1].function.name': string does not match pattern. "
        "Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'."
    )
    schema = {"type": "json_schema", "json_schema": {"name": name, "schema": {}}}
    error = client.post("/assistants", {"model": "scripted", "response_format": schema}, status=400)
    assert (error["code"], error["param"]) == ("invalid_value", "response_format.json_schema.name")


@pytest.mark.behaviour("LIM-54", "LIM-04", "LIM-05")
def test_an_assistant_may_have_128_tools_and_a_run_too(client: Client) -> None:
    tools = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]
    error = client.post("/assistants", {"model": "scripted", "tools": tools}, status=400)
    assert (error["code"], error["param"]) == ("array_above_max_length", "tools")
    assert error["message"] == (
        "Invalid 'tools': array too long. Expected an array with maximum length 128, "
        "but got an array with length 129 instead."
    )
    assistant = client.assistant(tools=tools[:128])
    assert len(assistant["tools"]) == 128
    body = json.dumps({"assistant_id": assistant["id"], "instructions": "Go."}).encode()
    run = client.raw("POST", "/v1/threads/runs", body, check=False)  # the description knows 20 only (DEV-14)
    assert len(run.json["tools"]) == 128


@pytest.mark.behaviour("LIM-55", "LIM-08", "LIM-09")
@pytest.mark.parametrize(
    ("field", "value", "code", "words"),
    [
        ("temperature", 2.1, "decimal_above_max_value",
         "decimal above maximum value. Expected a value <= 2, but got 2.1"),
        ("temperature", -0.1, "decimal_below_min_value",
         "decimal below minimum value. Expected a value >= 0, but got -0.1"),
        ("top_p", 1.01, "decimal_above_max_value",
         "decimal above maximum value. Expected a value <= 1, but got 1.01"),
    ],
)  # fmt: skip
def test_number_errors_in_their_words(client: Client, field: str, value: float, code: str, words: str) -> None:
    error = client.post("/assistants", {"model": "scripted", field: value}, status=400)
    assert (error["code"], error["param"]) == (code, field)
    assert error["message"] == f"Invalid '{field}': {words} instead."


@pytest.mark.behaviour("LIM-08", "LIM-09")
@pytest.mark.parametrize(("field", "value"), [("temperature", 0), ("temperature", 2), ("top_p", 0), ("top_p", 1)])
def test_number_bounds_are_inclusive(client: Client, field: str, value: int) -> None:
    assert client.assistant(**{field: value})[field] == value


@pytest.mark.behaviour("LIM-56", "LIM-57", "LIM-58", "LIM-34", "V1-02", "CONV-08")
@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({}, "model", "missing_required_parameter", "Missing required parameter: 'model'."),
        (
            {"model": "m", "name": 5},
            "name",
            "invalid_type",
            "Invalid type for 'name': expected a string, but got an integer instead.",
        ),
        (
            {"model": "m", "reasoning_effort": "huge"},
            "reasoning_effort",
            "invalid_value",
            "Invalid value: 'huge'. Supported values are: "
            "'high', 'low', 'max', 'medium', 'minimal', 'none', and 'xhigh'.",
        ),
        (
            {"model": "m", "tools": [{"type": "retrieval"}]},
            "tools[0].type",
            "invalid_value",
            "Invalid value: 'retrieval'. Supported values are: 'code_interpreter', 'file_search', and 'function'.",
        ),
        ({"model": "m", "foo": 1}, "foo", "unknown_parameter", "Unknown parameter: 'foo'."),
        (
            {"model": "m", "tools": [{"type": "function", "function": {"name": "f", "foo": 1}}]},
            "tools[0].function.foo",
            "unknown_parameter",
            "Unknown parameter: 'tools[0].function.foo'.",
        ),
    ],
)
def test_errors_in_their_words(client: Client, body: dict[str, Any], param: str, code: str, message: str) -> None:
    error = client.post("/assistants", body, status=400)
    assert error == {"message": message, "type": "invalid_request_error", "param": param, "code": code}


def test_an_error_does_not_repeat_a_huge_value(client: Client) -> None:
    error = client.post("/assistants", {"model": "m", "x" * 100_000: 1, "reasoning_effort": "y" * 100_000}, status=400)
    assert len(error["message"]) < 300
    assert len(error["param"]) < 150


@pytest.mark.behaviour("ERR-40")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_not_read(make_server: Callable[..., Server], chunked: bool) -> None:
    client = make_server(max_body_bytes=2000).client()
    fits = json.dumps({"metadata": {"k": "v" * 400}}).encode().ljust(2000)
    assert client.raw("POST", "/v1/threads", fits).status == 200
    headers = {"Transfer-Encoding": "chunked"} if chunked else {}
    sent = b"7d1\r\n" + fits + b" \r\n0\r\n\r\n" if chunked else fits + b" "
    response = client.raw("POST", "/v1/threads", sent, headers)
    assert response.status == 413
    assert response.error["type"] == "invalid_request_error"
    assert response.headers["connection"] == "close"
