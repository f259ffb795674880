"""The answer checks take what the real service sent with the relaxations we chose, and refuse anything else."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import openapi, schema
from tests.support_tests import samples
from tests.support_tests.samples import Object

T, R = "/v1/threads/" + samples.THREAD, f"/v1/threads/{samples.THREAD}/runs/{samples.RUN}"
HEADERS = {"Content-Type": "application/json", "X-Request-Id": "req_" + "0a" * 16}

RIGHT: list[tuple[str, str, Object]] = [
    ("POST", "/v1/assistants", samples.assistant()),
    ("GET", "/v1/assistants", samples.page(samples.assistant())),
    ("DELETE", "/v1/assistants/asst_x", {"id": "asst_x", "object": "assistant.deleted", "deleted": True}),
    ("POST", "/v1/threads", samples.thread()),
    ("POST", T, samples.thread(tool_resources={"code_interpreter": {"file_ids": []}})),
    ("DELETE", T, {"id": samples.THREAD, "object": "thread.deleted", "deleted": True}),
    ("GET", "/v1/threads?limit=2", samples.page(samples.thread())),
    ("GET", "/v1/threads", samples.page()),
    ("POST", T + "/messages", samples.message("completed", samples.text("Hi"), role="user", run_id=None)),
    ("GET", T + "/messages?limit=1&order=asc", samples.page(samples.message("completed"), has_more=True)),
    ("GET", T + "/messages", samples.page()),
    ("POST", T + "/runs", samples.run()),
    ("POST", "/v1/threads/runs", samples.run()),
    ("GET", T + "/runs", samples.page(samples.run("completed"))),
    ("GET", R, samples.run("requires_action", required_action=samples.required_action())),
    ("POST", R + "/cancel", samples.run("cancelling")),
    ("POST", R + "/submit_tool_outputs", samples.run()),
    ("POST", f"/openai{T.removeprefix('/v1')}/runs?api-version=2024-05-01-preview", samples.run()),
    ("POST", f"/openai{T}/runs", samples.run()),
    ("GET", R + "/steps", samples.page(samples.step(samples.creation(), "completed"))),
    ("GET", R + "/steps/step_x", samples.step(samples.calls("3 degrees", None))),
    ("GET", "/v1/files/file-x", {"id": "file-x", "object": "file", "bytes": 3, "created_at": 1, "filename": "a",
                                 "purpose": "assistants", "status": "processed", "expires_at": None,
                                 "status_details": None}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), RIGHT, ids=[f"{row[0]} {row[1]}" for row in RIGHT])
def test_a_right_answer_is_taken(method: str, path: str, body: Object) -> None:
    assert schema.check_response(method, path, 200, json.dumps(body).encode(), headers=HEADERS) == body
    assert schema.check_response(method, path, 200, body) == body


def _set(*path: str | int, to: Any) -> Callable[[Object], None]:
    def change(body: Object) -> None:
        at: Any = body
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = to

    return change


def _drop(name: str) -> Callable[[Object], None]:
    return lambda body: body.pop(name)


RUNS, STEPS, MESSAGES = T + "/runs", R + "/steps", T + "/messages"
WRONG: list[tuple[str, Object, Callable[[Object], None], str]] = [
    # Every required member of the objects that a run is about, and no relaxation that nobody chose.
    *((R, samples.run(), _drop(name), f"'{name}' is a required property")
      for name in openapi.resolve(openapi.ref("RunObject"))["required"]),
    *((R + "/steps/s", samples.step(samples.creation()), _drop(name), f"'{name}' is a required property")
      for name in openapi.resolve(openapi.ref("RunStepObject"))["required"]),
    *((T + "/messages/m", samples.message(), _drop(name), f"'{name}' is a required property")
      for name in openapi.resolve(openapi.ref("MessageObject"))["required"]),
    (R, samples.run(), _set("status", to="paused"), "'paused' is not one of"),
    (R, samples.run(), _set("created_at", to=1.0), "1.0 is not of type 'integer'"),
    (R, samples.run(), _set("created_at", to=None), "at [$].created_at"),
    (R, samples.run(), _set("model", to=None), "at [$].model"),
    (R, samples.run(), _set("thread_id", to=None), "at [$].thread_id"),
    (R, samples.run(), _set("parallel_tool_calls", to=None), "at [$].parallel_tool_calls"),
    (R, samples.run(), _set("tools", to=None), "at [$].tools"),
    (R, samples.run(), _set("tools", 0, "function", "name", to=None), r"at [$].tools\[0\].function.name"),
    (R, samples.run(), _set("usage", to={"total_tokens": 1}), "'prompt_tokens' is a required property"),
    (R, samples.run(), _set("metadata", to={"n": 1}), "at [$].metadata.n: 1 is not of type 'string'"),
    (R, samples.run(), _set("last_error", to={"code": "oops", "message": ""}), "at [$].last_error.code"),
    (R, samples.run(), _set("incomplete_details", to={"reason": "content_filter"}), "incomplete_details.reason"),
    (R, samples.run(), _set("truncation_strategy", to={"type": "auto", "last_messages": 0}), "less than the minimum"),
    (R + "/steps/s", samples.step(samples.calls(None)), _set("step_details", "tool_calls", 0, "function", to={}),
     "'name' is a required property"),
    (T + "/messages/m", samples.message("completed", samples.text("x")), _set("content", 0, "text", to="x"),
     r"at [$].content\[0\].text: 'x' is not of type 'object'"),
    ("/v1/assistants/a", samples.assistant(), _set("temperature", to=3), "greater than the maximum"),
    (RUNS, samples.page(samples.run()), _set("data", 0, "status", to="new"), r"at [$].data\[0\].status"),
    (RUNS, samples.page(samples.run()), _set("first_id", to=None), "LIST-05"),
    (RUNS, samples.page(samples.run()), _set("last_id", to="run_other"), "LIST-05"),
    (RUNS, samples.page(samples.run()), _set("object", to="page"), "a list's object"),
    (RUNS, samples.page(samples.run()), _set("has_more", to=None), "at [$].has_more"),
    (RUNS, samples.page(samples.run(), samples.run()), _set("has_more", to=False), "an element twice"),
    (MESSAGES, samples.page(), _set("has_more", to=True), "LIST-04"),
    (STEPS, samples.page(), _drop("first_id"), "'first_id' is a required property"),
    ("/v1/threads", samples.page(samples.thread()), _set("data", 0, "object", to="thread.x"), r"data\[0\].object"),
    ("/v1/threads", samples.page(samples.thread()), _set("total", to=1), "Additional properties"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "fault", "why"), WRONG)
def test_a_wrong_answer_is_refused(path: str, body: Object, fault: Callable[[Object], None], why: str) -> None:
    broken = json.loads(json.dumps(body))
    fault(broken)
    with pytest.raises(AssertionError, match=why):
        schema.check_response("GET", path, 200, broken)


def test_errors_have_their_four_keys() -> None:
    for body in (samples.error(), samples.error(code="invalid_type", param="metadata.key")):
        schema.check_response("GET", R, 404, body, headers=HEADERS)
    schema.check_response("GET", "/v1/no/such/place", 404, samples.error())
    for name in ("message", "type", "param", "code"):
        broken = samples.error()
        del broken["error"][name]
        with pytest.raises(AssertionError, match=f"'{name}' is a required property"):
            schema.check_response("GET", R, 404, broken)
    for broken, why in [
        ({"detail": "Not Found"}, "'error' is a required property"),
        ({**samples.error(), "status": 404}, "keys beside 'error'"),
        (samples.error(trace="..."), "more than its four keys"),
        (samples.error(message=""), "without words"),
        (samples.error(code=404), "at [$].error.code"),
    ]:
        with pytest.raises(AssertionError, match=why):
            schema.check_response("GET", R, 404, broken)


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ({"content-type": "text/html"}, "CONV-03"),
        ({"content-type": "application/problem+json"}, "CONV-03"),
        ({"content-type": "application/json"}, "HDR-20"),
        ({"content-type": "application/json", "x-request-id": "req_1"}, "HDR-20"),
    ],
)
def test_headers(headers: dict[str, str], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        schema.check_response("GET", R, 404, samples.error(), headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "status", "why"),
    [
        ("POST", RUNS, 201, "CONV-02"),
        ("POST", RUNS, 302, "CONV-02"),
        ("PUT", R, 200, "no operation"),
        ("GET", "/v1/threads/x/runs/y/z", 200, "no operation"),
        ("GET", "/v2/threads/x/runs", 200, "no operation"),
        ("GET", R + "/stream", 200, "use sse.check_stream"),
    ],
)
def test_statuses_and_paths(method: str, path: str, status: int, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        schema.check_response(method, path, status, samples.run())


@pytest.mark.parametrize(
    ("body", "why"),
    [(b"{", "not JSON"), (b'{"a":1,"a":2}', "key twice"), (b'{"a":NaN}', "NaN"), (b'"\xff"', "not JSON"), (b"", "not")],
)
def test_json_is_strict(body: bytes, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        schema.check_response("GET", R, 404, body)


def test_a_literal_segment_wins_over_a_parameter() -> None:
    found = openapi.find_operation("POST", "/v1/threads/runs")
    assert found is not None
    assert (found.id, found.streams) == ("createThreadAndRun", True)
    assert found.request == openapi.ref("CreateThreadAndRunRequest")


def test_every_operation_finds_itself() -> None:
    assert len(openapi.operations()) == 48 + len(openapi.EXTENSIONS)
    for operation in openapi.operations().values():
        concrete = operation.template.replace("{", "id_").replace("}", "")
        assert openapi.find_operation(operation.method.lower(), "/v1" + concrete) is operation


def test_nothing_of_the_older_dialects_is_left() -> None:
    text = json.dumps(openapi.document())
    assert "nullable" not in text.replace("nullable ", "")
    assert "recursive" not in text.replace("recursively", "")
    schema.check_component("CompoundFilter", {"type": "and", "filters": [
        {"type": "or", "filters": [{"type": "eq", "key": "k", "value": 1}]}]})  # fmt: skip
    with pytest.raises(AssertionError, match="breaks the schema"):
        schema.check_component("CompoundFilter", {"type": "and", "filters": [{"type": "or", "filters": [1]}]})


def test_transform_of_both_nullable_forms() -> None:
    assert openapi.transform({"type": "string", "nullable": True}) == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    reference = {"$ref": "#/components/schemas/X"}
    allof = {"allOf": [reference, {"nullable": True, "description": "d"}], "description": "e"}
    assert openapi.transform(allof) == {"anyOf": [reference, {"type": "null"}]}
    assert openapi.transform({"allOf": [reference, {"type": "object"}]})["allOf"] == [reference, {"type": "object"}]


def test_relaxations_are_needed_and_only_the_ones_chosen() -> None:
    """Each relaxed value is refused by the unrelaxed schema; the two documents differ in nothing else."""
    assert {row[2] for row in openapi.RELAXATIONS} == {"DEV-02", "DEV-05", "DEV-06", "DEV-07", "DEV-09"}
    copy = json.loads(json.dumps(openapi.document()))
    assert copy != openapi.relaxed_document()
    for component, name, _, _ in openapi.RELAXATIONS:
        before = openapi.document()["components"]["schemas"][component]["properties"][name]
        after = openapi.relaxed_document()["components"]["schemas"][component]["properties"][name]
        assert before != after
        copy["components"]["schemas"][component]["properties"][name] = after
    assert copy == openapi.relaxed_document()


def test_all_documented_events_have_a_schema() -> None:
    run = "created queued in_progress requires_action completed incomplete failed cancelling cancelled expired".split()
    step = "created in_progress delta completed failed cancelled expired".split()
    message = "created in_progress delta completed incomplete".split()
    expected = {"thread.created", "error", "done", *(f"thread.run.{v}" for v in run)}
    expected |= {*(f"thread.run.step.{v}" for v in step), *(f"thread.message.{v}" for v in message)}
    assert set(schema.events()) == expected
