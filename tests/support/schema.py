"""Holds answers and stream events against the official description: 2020-12 validation, plus what a schema cannot say.

Relaxed by DEV-02, -05, -06, -07 and -09 only (`openapi.RELAXATIONS`). Validators are compiled once.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, cast

import msgspec
from jsonschema import Draft202012Validator, TypeChecker, validators
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.support import openapi
from tests.support.openapi import Schema

_OUR_ANSWERS = "urn:assistants:answers"
_REQUESTS = "urn:assistants:requests"
_REQUEST_ID = re.compile(r"req_[0-9a-f]{32}")
_EXCERPT = 300


def _is_integer(_: TypeChecker, value: object) -> bool:
    # JSON Schema takes 1.0 for an integer; a client in a typed language does not (BEHAVIOUR CONV-04).
    return isinstance(value, int) and not isinstance(value, bool)


# The library has no types of its own here.
Validator: Any = cast("Any", validators).extend(
    Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
)


@cache
def _registry() -> Registry[Any]:
    found: Registry[Any] = Registry()
    for uri, document in ((_OUR_ANSWERS, openapi.relaxed_document()), (_REQUESTS, openapi.document())):
        found = found.with_resource(uri, Resource(contents=document, specification=DRAFT202012))
    return found.crawl()


def absolute(node: Any, uri: str) -> Any:
    """A copy of a schema whose references into the document name the document."""
    if isinstance(node, list):
        return [absolute(item, uri) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    return {
        key: uri + value if key == "$ref" and isinstance(value, str) and value.startswith("#") else absolute(value, uri)
        for key, value in cast(Schema, node).items()
    }


@cache
def _validator(schema: str, uri: str) -> Any:
    return Validator(absolute(json.loads(schema), uri), registry=_registry())


def _excerpt(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


def _place(path: Iterable[str | int]) -> str:
    place = "$"
    for part in path:
        place += f"[{part}]" if isinstance(part, int) else f".{part}"
    return place


def inner(error: ValidationError) -> ValidationError:
    """The error worth reading: inside the alternative that was meant, if it can be told which one that was.

    It is the only one of the right JSON type, or of those the only one whose constant (``type``) is right.
    """
    branches: dict[object, list[ValidationError]] = {}
    for found in error.context or ():
        branches.setdefault(found.schema_path[0], []).append(found)
    own = len(error.absolute_path)
    meant = list(branches.values())
    for rule, places in (("type", [()]), ("enum", [(), ("type",)])):
        if len(meant) > 1:
            meant = [
                errors
                for errors in meant
                if not any(found.validator == rule and tuple(found.absolute_path)[own:] in places for found in errors)
            ]
    return inner(meant[0][0]) if len(meant) == 1 else error


def explain(error: ValidationError) -> str:
    lines = [
        f"at {_place(error.absolute_path)}: {str(error.message)[:_EXCERPT]}",
        f"  rule: {error.validator} = {_excerpt(cast(object, error.validator_value))}",
        f"  in schema: {'/'.join(str(part) for part in error.absolute_schema_path)}",
        f"  found: {_excerpt(cast(object, error.instance))}",
    ]
    return "\n".join(lines)


def _validate(schema: Schema, instance: object, what: str, uri: str = _OUR_ANSWERS) -> None:
    validator = _validator(json.dumps(schema, sort_keys=True), uri)
    if validator.is_valid(instance):
        return
    errors: list[ValidationError] = list(validator.iter_errors(instance))
    shown = [explain(inner(error)) for error in errors[:3]]
    raise AssertionError(f"{what} breaks the schema in {len(errors)} place(s):\n" + "\n".join(shown))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise AssertionError(f"an object has a key twice: {sorted({key for key in keys if keys.count(key) > 1})}")
    return found


def _no_constant(text: str) -> Any:
    raise AssertionError(f"{text} is not JSON")


def parse_json(body: bytes | str) -> Any:
    """JSON as strict clients read it: UTF-8, no key twice, no NaN. Raises `AssertionError` with its beginning."""
    try:
        text = body.decode() if isinstance(body, bytes) else body
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except ValueError as error:
        raise AssertionError(f"not JSON ({error}): {body[:_EXCERPT]!r}") from None


def check_component(name: str, value: object) -> None:
    """Hold a value against a component of the description by its name, relaxed as our answers are."""
    if name not in openapi.relaxed_document()["components"]["schemas"]:
        raise KeyError(name)
    _validate(openapi.ref(name), value, name)


def check_request(operation: str, body: object) -> None:
    """Hold a request body against an operation's request schema, which is not relaxed. ``operation``: its id."""
    schema = openapi.operations()[operation].request
    if schema is None:
        raise KeyError(f"{operation} takes no JSON body")
    _validate(schema, body, f"the body of {operation}", _REQUESTS)


def check_error(body: object) -> dict[str, Any]:
    """An error body (BEHAVIOUR ERR-01): ``error`` with its four keys and no other; gives the inner object.

    ``detail`` may stand beside ``error`` (ERR-02). Raises `AssertionError`.
    """
    _validate(openapi.ref("ErrorResponse"), body, "an error answer")
    whole = cast("dict[str, Any]", body)
    if extra := set(whole) - {"error", "detail"}:
        raise AssertionError(f"an error answer has keys beside 'error': {sorted(extra)}")
    error = cast("dict[str, Any]", whole["error"])
    if extra := set(error) - {"message", "type", "param", "code"}:
        raise AssertionError(f"an error object has more than its four keys: {sorted(extra)}")
    if not error["message"] or not error["type"]:
        raise AssertionError(f"an error without words: {_excerpt(error)}")
    return error


def check_list(page: Mapping[str, Any]) -> None:
    """What a list's schema cannot say: the cursors are the page's ends (LIST-05), null only when empty (LIST-04)."""
    ids = [item["id"] for item in page["data"]]
    ends = (ids[0], ids[-1]) if ids else (None, None)
    if page["object"] != "list":
        raise AssertionError(f"a list's object is {page['object']!r}")
    if (page["first_id"], page["last_id"]) != ends:
        found = (page["first_id"], page["last_id"])
        raise AssertionError(f"LIST-05: first_id and last_id are {found}, the page's ends are {ends}")
    if len(set(ids)) != len(ids):
        raise AssertionError(f"a list has an element twice: {ids}")
    if not ids and page["has_more"]:
        raise AssertionError("LIST-04: an empty page says has_more")


def check_headers(headers: Mapping[str, str], content_type: str) -> None:
    """The headers of every answer: media type (CONV-03) and request id (HDR-20, HDR-21). Any case of names is taken."""
    lower = {name.lower(): value for name, value in headers.items()}
    found = lower.get("content-type", "")
    if found.replace(" ", "") not in (content_type, content_type + ";charset=utf-8"):
        raise AssertionError(f"CONV-03: content-type is {found!r}, expected {content_type}")
    if not _REQUEST_ID.fullmatch(lower.get("x-request-id", "")):
        raise AssertionError(f"HDR-20: x-request-id is {lower.get('x-request-id')!r}")


def check_response(
    method: str, path: str, status: int, body: object, *, headers: Mapping[str, str] | None = None
) -> Any:
    """Hold one JSON answer against the description and give it back parsed.

    ``path`` is concrete, with ``/v1`` or Azure's ``/openai`` before it, a query is ignored; ``body`` is bytes, text
    or the parsed value; ``headers``, if given, are checked too. Status 200 is the operation's schema (CONV-02), 4xx
    and 5xx the error's (ERR-01), anything else is wrong. Raises `AssertionError`. A stream is for `sse.check_stream`.
    """
    what = f"{method.upper()} {path} -> {status}"
    if headers is not None:
        check_headers(headers, "application/json")
    parsed = parse_json(body) if isinstance(body, bytes | str) else body
    if 400 <= status < 600:
        check_error(parsed)
        return parsed
    if status != 200:
        raise AssertionError(f"{what}: CONV-02 knows 200 and errors only")
    operation = openapi.find_operation(method, path)
    if operation is None:
        raise AssertionError(f"{what}: no operation has this method and path, so 200 cannot be right")
    if operation.response is None:
        raise AssertionError(f"{what}: {operation.id} answers with a stream: use sse.check_stream")
    _validate(operation.response, parsed, what)
    if operation.id.startswith("list"):
        check_list(cast("dict[str, Any]", parsed))
    return parsed


def _event_schemas(schema: Schema) -> Iterator[tuple[str, Schema]]:
    found = openapi.resolve(schema)
    for alternative in found.get("oneOf", ()):
        yield from _event_schemas(alternative)
    if "oneOf" not in found:
        for name in found["properties"]["event"]["enum"]:
            yield name, found


@cache
def events() -> dict[str, Schema]:
    """Event name -> schema of ``{"event", "data"}``, from AssistantStreamEvent (BEHAVIOUR SSE-06).

    Its alternatives are told apart by the name alone, so holding an event against the one of its name is the same as
    the ``oneOf``, and much quicker. Raises `AssertionError` if two alternatives share a name.
    """
    pairs = list(_event_schemas(openapi.ref("AssistantStreamEvent")))
    if len(dict(pairs)) != len(pairs):
        raise AssertionError("two stream events share a name: the schemas must be tried one after the other")
    return dict(pairs)


def check_event(name: str, data: str) -> Any:
    """Hold one stream event against the description; gives the parsed data, or the text ``[DONE]`` for ``done``.

    The data is one line of compact JSON (BEHAVIOUR SSE-01). An ``error`` event also carries its four members under
    ``error``, so that both SDKs raise (SSE-53). Raises `AssertionError`.
    """
    schema = events().get(name)
    if schema is None:
        raise AssertionError(f"SSE-06: {name!r} is not a documented event")
    if name == "done":
        _validate(schema, {"event": name, "data": data}, "event done")
        return data
    parsed = parse_json(data)
    if msgspec.json.format(data, indent=-1) != data:
        raise AssertionError(f"SSE-01: the data of {name} is not compact: {data[:_EXCERPT]}")
    _validate(schema, {"event": name, "data": parsed}, f"event {name}")
    if name == "error":
        inner = check_error({"error": parsed.get("error")})
        if {key: parsed[key] for key in inner} != inner:
            raise AssertionError(f"SSE-53: an error event says two things: {_excerpt(parsed)}")
    return parsed
