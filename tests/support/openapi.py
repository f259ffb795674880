"""The Assistants description as data: loaded once, transformed in memory, and the operation behind a concrete path.

Only reading and looking up lives here: checking answers is `schema`, deriving bad bodies is `invalid`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

Schema = dict[str, Any]

DATA = Path(__file__).parent.parent / "data"
_NULL: Schema = {"type": "null"}
_COMPONENTS = "#/components/schemas/"

# The values that we send as the real service did although the schema forbids them, and nothing more:
# component, property, the note that decides it, how.
RELAXATIONS: tuple[tuple[str, str, str, str], ...] = (
    ("ListAssistantsResponse", "first_id", "DEV-02", "null"),
    ("ListAssistantsResponse", "last_id", "DEV-02", "null"),
    ("ListMessagesResponse", "first_id", "DEV-02", "null"),
    ("ListMessagesResponse", "last_id", "DEV-02", "null"),
    ("ListRunsResponse", "first_id", "DEV-02", "null"),
    ("ListRunsResponse", "last_id", "DEV-02", "null"),
    ("ListRunStepsResponse", "first_id", "DEV-02", "null"),
    ("ListRunStepsResponse", "last_id", "DEV-02", "null"),
    ("ListFilesResponse", "first_id", "DEV-02", "null"),
    ("ListFilesResponse", "last_id", "DEV-02", "null"),
    ("ListVectorStoresResponse", "first_id", "DEV-02", "null"),
    ("ListVectorStoresResponse", "last_id", "DEV-02", "null"),
    ("ListVectorStoreFilesResponse", "first_id", "DEV-02", "null"),
    ("ListVectorStoreFilesResponse", "last_id", "DEV-02", "null"),
    ("RunObject", "instructions", "DEV-05", "null"),
    ("OpenAIFile", "expires_at", "DEV-06", "null"),
    ("OpenAIFile", "status_details", "DEV-06", "null"),
    ("VectorStoreObject", "name", "DEV-07", "null"),
    ("VectorStoreObject", "expires_after", "DEV-07", "null"),
    ("VectorStoreFileBatchObject", "object", "DEV-09", "vector_store.file_batch"),
)


@dataclass(frozen=True)
class Operation:
    """One operation: its id, its path template below ``/v1``, and its schemas.

    ``response`` is the 200 schema, or None where the answer is only a stream; ``request`` is the JSON body's, or None.
    ``streams`` says that a 200 may also be an event stream.
    """

    id: str
    method: str
    template: str
    response: Schema | None
    request: Schema | None = None
    streams: bool = False


def ref(component: str) -> Schema:
    """A reference to a component of the document by its name."""
    return {"$ref": _COMPONENTS + component}


def component_of(schema: Schema) -> str | None:
    """The component's name that a ``$ref`` schema points to; None for a schema that is not a reference."""
    target = schema.get("$ref")
    return target.removeprefix(_COMPONENTS) if isinstance(target, str) else None


def resolve(schema: Schema) -> Schema:
    """The schema itself, or the component that it refers to."""
    while (name := component_of(schema)) is not None:
        schema = document()["components"]["schemas"][name]
    return schema


def transform(node: Any) -> Any:
    """A copy of a 3.1 schema (or of any JSON around schemas) with the 3.0 and 2019-09 leftovers in 2020-12's words.

    BEHAVIOUR DEV-01: ``nullable: true`` becomes an ``anyOf`` with null, ``allOf: [X, {nullable}]`` too, and
    ``$recursiveRef`` (only in CompoundFilter) a plain reference. Examples are dropped.
    """
    if isinstance(node, list):
        return [transform(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    schema = cast(Schema, node)
    if schema.get("$recursiveRef") == "#":
        return ref("CompoundFilter")
    parts = schema.get("allOf")
    if isinstance(parts, list) and len(cast("list[Any]", parts)) == 2 and _only_nullable(parts[1]):
        return {"anyOf": [transform(parts[0]), _NULL]}
    rest = {
        key: transform(value)
        for key, value in schema.items()
        if key not in ("$recursiveAnchor", "x-oaiMeta") and not (key == "nullable" and value is True)
    }
    return {"anyOf": [rest, _NULL]} if schema.get("nullable") is True else rest


def _only_nullable(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    members = cast(Schema, schema)
    return members.get("nullable") is True and not set(members) - {"nullable", "description"}


def relax(schemas: dict[str, Schema]) -> None:
    """Apply `RELAXATIONS` to the components, in place; raises `KeyError` when one no longer fits the document."""
    for component, name, _, how in RELAXATIONS:
        properties = schemas[component]["properties"]
        if how == "null":
            properties[name] = {"anyOf": [properties[name], _NULL]}
        else:
            properties[name] = {**properties[name], "enum": [*properties[name]["enum"], how]}


@cache
def document() -> Schema:
    """The whole document after `transform`, without relaxations: what requests are held against. Do not change it."""
    return transform(json.loads((DATA / "assistants.openapi.json").read_text()))


@cache
def relaxed_document() -> Schema:
    """The whole document after `transform` and `relax`: what our answers are held against. Do not change it."""
    copy = json.loads(json.dumps(document()))
    relax(copy["components"]["schemas"])
    return copy


def list_of(component: str) -> Schema:
    """The list envelope (BEHAVIOUR LIST-01, null cursors as DEV-02) around one component: for our own lists."""
    cursor: Schema = {"anyOf": [{"type": "string"}, _NULL]}
    return {
        "type": "object",
        "properties": {
            "object": {"enum": ["list"]},
            "data": {"type": "array", "items": ref(component)},
            "first_id": cursor,
            "last_id": cursor,
            "has_more": {"type": "boolean"},
        },
        "required": ["object", "data", "first_id", "last_id", "has_more"],
        "additionalProperties": False,
    }


# What we offer beyond the description.
EXTENSIONS: tuple[Operation, ...] = (
    Operation("listThreads", "GET", "/threads", list_of("ThreadObject")),
    Operation("streamRun", "GET", "/threads/{thread_id}/runs/{run_id}/stream", None, streams=True),
)

_STREAMING = {"createRun", "createThreadAndRun", "submitToolOuputsToRun"}


def _described() -> Iterator[Operation]:
    for template, item in document()["paths"].items():
        for method, operation in item.items():
            response = operation["responses"]["200"]["content"]["application/json"]["schema"]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            name = operation["operationId"]
            yield Operation(name, method.upper(), template, response, body, name in _STREAMING)


@cache
def operations() -> dict[str, Operation]:
    """Every operation by its id: the description's and our `EXTENSIONS`."""
    return {found.id: found for found in (*_described(), *EXTENSIONS)}


@cache
def _routes() -> list[tuple[re.Pattern[str], Operation]]:
    # Literal segments win over parameters: /threads/runs is not the thread "runs".
    ordered = sorted(operations().values(), key=lambda found: ["{" in part for part in found.template.split("/")])
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", found.template)), found) for found in ordered]


# Our own prefix and Azure's, whose paths have no /v1 (its newer ones do).
_PREFIX = re.compile(r"^(?:/openai)?(?:/v1)?(?=/)")


def find_operation(method: str, path: str) -> Operation | None:
    """The operation of a concrete path such as ``/v1/threads/thread_x/runs?limit=2``, or None if there is none."""
    plain = _PREFIX.sub("", path.partition("?")[0], count=1).rstrip("/")
    for pattern, operation in _routes():
        if operation.method == method.upper() and pattern.fullmatch(plain):
            return operation
    return None
