"""The derived bodies: each breaks its request schema in the one place it names, and the base bodies do not."""

import copy
from typing import Any

import pytest

from tests.support import invalid, openapi, schema

OPERATIONS = [
    "createAssistant",
    "modifyAssistant",
    "createThread",
    "modifyThread",
    "createMessage",
    "modifyMessage",
    "createRun",
    "createThreadAndRun",
    "modifyRun",
    "submitToolOuputsToRun",
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_base_body_is_valid(operation: str) -> None:
    schema.check_request(operation, invalid.valid_body(operation))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_body_breaks_the_schema_or_its_prose(operation: str) -> None:
    found = invalid.invalid_bodies(operation)
    assert len({row.name for row in found}) == len(found)
    for row in found:
        if row.prose:
            schema.check_request(operation, row.body)
        else:
            with pytest.raises(AssertionError, match="breaks the schema"):
                schema.check_request(operation, row.body)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_property_and_unknown_one_is_tried(operation: str) -> None:
    request = openapi.operations()[operation].request
    assert request is not None
    tried = {row.param for row in invalid.invalid_bodies(operation)}
    assert {*openapi.resolve(request)["properties"], "no_such_property"} <= tried


def _row(operation: str, param: str, rule: str, base: dict[str, Any] | None = None) -> invalid.Invalid:
    name = f"{operation}: {param}: {rule}"
    return next(row for row in invalid.invalid_bodies(operation, base) if row.name == name)


@pytest.mark.parametrize(
    ("operation", "param", "rule", "code"),
    [
        ("createRun", "assistant_id", "missing", "missing_required_parameter"),
        ("createRun", "max_prompt_tokens", "below", "integer_below_min_value"),
        ("createRun", "max_completion_tokens", "wrong type float", "invalid_type"),
        ("createRun", "temperature", "above", "decimal_above_max_value"),
        ("createRun", "truncation_strategy.type", "not in enum", "invalid_value"),
        ("createRun", "additional_messages[0].no_such_property", "unknown", "unknown_parameter"),
        ("createRun", "tool_choice", "not in enum", "invalid_value"),
        ("createRun", "metadata.key", "value's type", "invalid_type"),
        ("createAssistant", "name", "too long", "string_above_max_length"),
        ("createAssistant", "tools", "too many", "array_above_max_length"),
        ("createAssistant", "tools[0].type", "not in enum", "invalid_value"),
        ("createAssistant", "tools[0].function.name", "pattern", "invalid_value"),
        ("createAssistant", "metadata", "17 pairs", "object_above_max_properties"),
        ("createAssistant", "metadata", "long key", "property_name_above_max_length"),
        ("createAssistant", "response_format.json_schema.name", "too long", "string_above_max_length"),
        ("createThread", "messages[0].content[0].type", "missing", "missing_required_parameter"),
        ("createThreadAndRun", "thread.messages[0].role", "not in enum", "invalid_value"),
        ("createMessage", "content", "empty", None),
        ("createMessage", "content", "too long", "string_above_max_length"),
        ("submitToolOuputsToRun", "tool_outputs[0].output", "wrong type int", "invalid_type"),
    ],
)
def test_known_violations_are_there(operation: str, param: str, rule: str, code: str | None) -> None:
    row = _row(operation, param, rule)
    assert (row.param, row.code) == (param, code)


def test_the_given_base_is_kept_and_left_alone() -> None:
    base = {"assistant_id": "asst_1", "metadata": {"a": "b"}}
    before = copy.deepcopy(base)
    assert _row("createRun", "temperature", "above", base).body == {**base, "temperature": 2.1}
    assert _row("createRun", "assistant_id", "missing", base).body == {"metadata": {"a": "b"}}
    assert base == before


def test_features_mark_what_a_smaller_server_refuses_for_another_reason() -> None:
    assert _row("createThread", "tool_resources.code_interpreter.file_ids", "too many").features == {"code_interpreter"}
    assert _row("createMessage", "attachments", "wrong type str").features == {"files"}
    assert _row("createAssistant", "tools", "too many").features == frozenset()
    assert _row("createAssistant", "temperature", "above").features == frozenset()


def test_an_attachment_may_lack_tools() -> None:
    """ATT-09 is laxer than the schema."""
    assert not [row for row in invalid.invalid_bodies("createMessage") if row.param.endswith("[0].tools") and
                row.code == "missing_required_parameter"]  # fmt: skip


def test_an_operation_without_body_has_none() -> None:
    with pytest.raises(KeyError, match="cancelRun takes no JSON body"):
        invalid.invalid_bodies("cancelRun")
