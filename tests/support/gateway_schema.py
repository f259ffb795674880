"""Holds answers against Portkey's description (``tests/data/gateway.openapi.json``): OpenAPI 3.0 read as 2020-12.

Formats count: a UUID is one, a time is one. Only reading happens in the file; what is transformed is a copy.
"""

import json
import re
import uuid
from datetime import datetime
from functools import cache
from typing import Any, cast

from jsonschema import FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.support.openapi import DATA, Schema
from tests.support.schema import Validator, absolute, explain, inner, parse_json

_URI = "urn:gateway"
_NULL: Schema = {"type": "null"}

# Alternatives that overlap, so that what fits one fits several: ``oneOf`` cannot be meant. Component, property.
OVERLAPPING = (
    ("CreateIntegrationRequest", "configurations"),
    ("UpdateIntegrationRequest", "configurations"),
    ("IntegrationDetailResponse", "configurations"),
    ("GuardrailCheck", "parameters"),
)

_formats = FormatChecker(())


@_formats.checks("uuid")
@_formats.checks("UUID")
def _is_uuid(value: object) -> bool:
    try:
        return not isinstance(value, str) or str(uuid.UUID(value)) == value.lower()
    except ValueError:
        return False


@_formats.checks("date-time")
def _is_moment(value: object) -> bool:
    try:
        return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _transform(node: Any) -> Any:
    """A copy in 2020-12's words: ``nullable`` becomes an alternative, what stands beside a ``$ref`` is dropped."""
    if isinstance(node, list):
        return [_transform(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    schema = cast(Schema, node)
    if isinstance(schema.get("$ref"), str):
        plain: Schema = {"$ref": schema["$ref"]}
        return {"anyOf": [plain, _NULL]} if schema.get("nullable") is True else plain
    rest = {
        key: _transform(value)
        for key, value in schema.items()
        if key not in ("example", "examples", "discriminator") and not (key == "nullable" and isinstance(value, bool))
    }
    return {"anyOf": [rest, _NULL]} if schema.get("nullable") is True else rest


def _property(schema: Schema, name: str) -> Schema:
    for part in (schema, *schema.get("allOf", ())):
        if name in part.get("properties", {}):
            return part["properties"][name]
    raise KeyError(name)


@cache
def document() -> Schema:
    """The whole description after the transformation. Do not change it."""
    made = _transform(json.loads((DATA / "gateway.openapi.json").read_text()))
    for component, name in OVERLAPPING:
        found = _property(made["components"]["schemas"][component], name)
        found["anyOf"] = found.pop("oneOf")
    return made


@cache
def _registry() -> Registry[Any]:
    return Registry().with_resource(_URI, Resource(contents=document(), specification=DRAFT202012)).crawl()


@cache
def _routes() -> list[tuple[re.Pattern[str], str]]:
    # Literal segments win over parameters.
    ordered = sorted(document()["paths"], key=lambda path: ["{" in part for part in path.split("/")])
    return [(re.compile(re.sub(r"\{[\w-]+\}", "[^/]+", path)), path) for path in ordered]


def find_operation(method: str, path: str) -> Schema | None:
    """The operation of a concrete path such as ``/v1/configs/pc-x?a=b``, or ``None`` if there is none."""
    plain = path.partition("?")[0].removeprefix("/v1").rstrip("/")
    for pattern, template in _routes():
        if pattern.fullmatch(plain):
            return document()["paths"][template].get(method.lower())
    return None


def _content(holder: Schema) -> Schema | None:
    while "$ref" in holder:
        group, name = holder["$ref"].split("/")[-2:]
        holder = document()["components"][group][name]
    return holder.get("content", {}).get("application/json", {}).get("schema")


def validate(schema: Schema, value: object, what: str) -> None:
    """Raises `AssertionError` unless ``value`` fits ``schema``, whose references are into the description."""
    validator = Validator(absolute(schema, _URI), registry=_registry(), format_checker=_formats)
    errors = list(validator.iter_errors(value))
    if errors:
        shown = "\n".join(explain(inner(error)) for error in errors[:3])
        raise AssertionError(f"{what} breaks the schema in {len(errors)} place(s):\n{shown}")


def check_request(method: str, path: str, body: object) -> None:
    """Hold a request's JSON body against the description."""
    operation = find_operation(method, path)
    assert operation is not None, f"no operation {method} {path}"
    schema = _content(operation["requestBody"])
    assert schema is not None
    validate(schema, body, f"the body of {method} {path}")


def check_response(method: str, path: str, status: int, body: bytes | str) -> Any:
    """Hold one JSON answer against the description and give it back parsed.

    A status that an operation does not list must be an error: with the four members that OpenAI's clients read, and
    ``success`` and ``data.message``, which Portkey's errors have (GATEWAY VAL-21).
    """
    what = f"{method} {path} -> {status}"
    parsed = parse_json(body)
    operation = find_operation(method, path)
    responses: Schema = {} if operation is None else operation["responses"]
    listed = responses.get(str(status))
    assert listed is not None or status >= 400, f"{what}: this status is not in the description"
    schema = None if listed is None else _content(listed)
    if schema is not None:
        validate(schema, parsed, what)
    if status >= 400:
        validate({"$ref": "#/components/schemas/ErrorResponse"}, parsed, what)
        assert set(parsed) == {"error", "success", "data"}, f"{what}: {parsed}"
        assert parsed["success"] is False
        assert parsed["data"] == {"message": parsed["error"]["message"]}
    return parsed
