"""Bodies that must be refused, derived from the request schemas: one violation each, with the error it must give.

`invalid_bodies` walks an operation's request schema: an unknown property wherever the schema forbids it (BEHAVIOUR
CONV-08), each required property left out (LIM-56), each property with a wrong type (LIM-57), a value outside an
enum (LIM-58), and one step over each bound (LIM-52, -54, -55). Bounds that stand only in the description's prose
(LIM-06, -07, -35, MSG-08) are rows of `_PROSE`. Null is never a violation here: CONV-11 makes it mean "not given" in
more places than the schemas say.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from tests.support import openapi
from tests.support.openapi import Schema

Path = tuple[str | int, ...]

_UNKNOWN = "no_such_property"
_HUGE = 300_000  # Bounds above this are not worth a body of their own in a table test.

# Which feature a part of a body belongs to, so that a server without it can leave those rows out.
_FEATURES = {
    "code_interpreter": "code_interpreter",
    "file_search": "file_search",
    "attachments": "files",
    "image_file": "files",
}

# What the schema requires and BEHAVIOUR does not: by the end of the place.
_OPTIONAL = ("attachments[0].tools",)  # ATT-09


@dataclass(frozen=True)
class Invalid:
    """One body to refuse with 400, ``invalid_request_error``, ``param`` and ``code`` (None: no code is promised).

    ``name`` says place and violation, for a test's id; ``features`` are the features whose words the body uses:
    a server without them may refuse the body for that reason instead. ``prose``: the bound is not in the schema itself.
    """

    name: str
    body: Any
    param: str
    code: str | None
    features: frozenset[str] = frozenset()
    prose: bool = False


@dataclass(frozen=True)
class _Violation:
    rule: str
    path: Path  # Where the value goes in,
    value: Any
    at: Path  # and the place that the error must name.
    code: str | None
    prose: bool = False


def param(path: Path) -> str:
    """A place as errors name it: ``tools[0].function.name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _choices(schema: Schema) -> list[tuple[str | None, Schema]]:
    """A schema's alternatives, references and nested ``anyOf`` opened up, null left out; with the component's name."""
    name = openapi.component_of(schema)
    found = openapi.resolve(schema)
    # A oneOf beside properties ("one of these two must be given") is a condition, not a choice of shapes.
    inner = [] if "properties" in found else [*found.get("anyOf", ()), *found.get("oneOf", ())]
    if not inner:
        return [] if found.get("type") == "null" else [(name, found)]
    return [(own or name, choice) for part in inner for own, choice in _choices(part)]


def _kinds(schema: Schema) -> set[str]:
    return {"object" if "properties" in found else found["type"] for _, found in _choices(schema)}


def example(schema: Schema) -> Any:
    """The smallest value that a schema takes: required properties only, the first alternative, empty lists."""
    name, found = _choices(schema)[0]
    if name in _EXAMPLES:
        return copy.deepcopy(_EXAMPLES[name])
    if "enum" in found:
        return found["enum"][0]
    match found["type"]:
        case "object":
            properties = found.get("properties", {})
            return {key: example(properties[key]) for key in found.get("required", ())}
        case "array":
            return [example(found["items"]) for _ in range(found.get("minItems", 0))]
        case "string":
            return "https://example.com/cat.png" if found.get("format") == "uri" else "x"
        case "boolean":
            return True
        case _:
            return found.get("minimum", 1)


_EXAMPLES: dict[str | None, Any] = {
    "CreateMessageRequest": {"role": "user", "content": "Hello"},
    "AssistantToolsFunction": {"type": "function", "function": {"name": "f"}},
}

# A value of each JSON type, to be tried where another type is expected.
_WRONG: dict[str, Any] = {"string": "wrong", "integer": 12345, "boolean": True, "array": [], "object": {}}


def _wrong_types(kinds: set[str]) -> list[Any]:
    """Values of types that none of ``kinds`` takes; for an integer also a fraction."""
    kinds = kinds | ({"integer"} if "number" in kinds else set())
    wrong = [value for kind, value in _WRONG.items() if kind not in kinds]
    return [*wrong, 300.5] if "integer" in kinds and "number" not in kinds else wrong


def _prose_metadata(path: Path) -> Iterator[_Violation]:
    def at(rule: str, value: Any, place: Path, code: str) -> _Violation:
        return _Violation(rule, path, value, place, code, prose=True)

    yield at("17 pairs", {f"key{n}": "v" for n in range(17)}, path, "object_above_max_properties")
    yield at("long key", {"k" * 65: "v"}, path, "property_name_above_max_length")
    yield at("long value", {"key": "v" * 513}, (*path, "key"), "string_above_max_length")


def _prose_name(path: Path) -> Iterator[_Violation]:
    place = (*path, "name")
    yield _Violation("pattern", path, {"name": "two words"}, place, "invalid_value", prose=True)
    yield _Violation("too long", path, {"name": "n" * 65}, place, "string_above_max_length", prose=True)


def _prose_content(path: Path) -> Iterator[_Violation]:
    place = (*path, "content")
    long = {"role": "user", "content": "c" * 256_001}
    yield _Violation("too long", path, long, place, "string_above_max_length", prose=True)
    yield _Violation("empty string", path, {"role": "user", "content": ""}, place, None, prose=True)  # MSG-07


def _prose_format(path: Path) -> Iterator[_Violation]:
    for violation in _prose_name((*path, "json_schema")):
        value = {"type": "json_schema", "json_schema": violation.value}
        yield _Violation(violation.rule, path, value, violation.at, violation.code, prose=True)


# Bounds that the description gives in words: by component.
_PROSE: dict[str | None, Callable[[Path], Iterator[_Violation]]] = {
    "Metadata": _prose_metadata,
    "FunctionObject": _prose_name,
    "ResponseFormatJsonSchema": _prose_format,
    "CreateMessageRequest": _prose_content,
}


def _violations(schema: Schema, path: Path) -> Iterator[_Violation]:
    choices = _choices(schema)
    kinds = _kinds(schema)
    if path:
        for wrong in _wrong_types(kinds):
            yield _Violation(f"wrong type {type(wrong).__name__}", path, wrong, path, "invalid_type")
    enums = [value for _, found in choices if "properties" not in found for value in found.get("enum", ())]
    if enums and not any(found["type"] == "string" and "enum" not in found for _, found in choices):
        yield _Violation("not in enum", path, "no_such_value", path, "invalid_value")
    shapes = [(name, found) for name, found in choices if "properties" in found]
    tagged = all("enum" in found["properties"].get("type", {}) for _, found in shapes)
    if len(shapes) > 1 and tagged:
        tag = (*path, "type")
        yield _Violation("missing", path, {}, tag, "missing_required_parameter")
        yield _Violation("not in enum", path, {"type": "no_such_value"}, tag, "invalid_value")
    for name, found in choices:
        if "properties" in found:
            yield from _object(found, path, skip={"type"} if len(shapes) > 1 and tagged else set())
        elif "enum" not in found:
            yield from _bounds(found, path)
        yield from _PROSE.get(name, _nothing)(path)


def _nothing(_: Path) -> Iterator[_Violation]:
    return iter(())


def _object(found: Schema, path: Path, skip: set[str]) -> Iterator[_Violation]:
    # Required siblings; those of the whole body are put in by `invalid_bodies`, from the caller's base.
    base = {key: example(found["properties"][key]) for key in found.get("required", ()) if path}
    if found.get("additionalProperties") is False:
        place = (*path, _UNKNOWN)
        yield _Violation("unknown", path, {**base, _UNKNOWN: 1}, place, "unknown_parameter")
    for key in found.get("required", ()):
        if key not in skip:
            place = (*path, key)
            rest = {name: value for name, value in base.items() if name != key}
            yield _Violation("missing", path, rest, place, "missing_required_parameter")
    for key, inner in found["properties"].items():
        if key in skip:
            continue
        for violation in _violations(inner, (*path, key)):
            # Inside an object that the base body lacks, the value is put in together with its required siblings.
            value = {**base, **_nested(violation.path[len(path) :], violation.value)}
            yield _Violation(violation.rule, path, value, violation.at, violation.code, violation.prose)


def _nested(path: Path, value: Any) -> Any:
    for part in reversed(path):
        value = [value] if isinstance(part, int) else {part: value}
    return value


def _bounds(found: Schema, path: Path) -> Iterator[_Violation]:
    kind = found["type"]
    number = "integer" if kind == "integer" else "decimal"
    step = 1 if kind == "integer" else 0.1
    if (top := found.get("maximum")) is not None:
        yield _Violation("above", path, top + step, path, f"{number}_above_max_value")
    if (bottom := found.get("minimum")) is not None:
        yield _Violation("below", path, bottom - step, path, f"{number}_below_min_value")
    if (length := found.get("maxLength", _HUGE)) < _HUGE:
        yield _Violation("too long", path, "x" * (length + 1), path, "string_above_max_length")
    if kind == "object" and isinstance(values := found.get("additionalProperties"), dict):
        place = (*path, "key")
        for wrong in _wrong_types(_kinds(cast(Schema, values))):
            yield _Violation("value's type", path, {"key": wrong}, place, "invalid_type")
    if kind == "array":
        yield from _array(found, path)


def _array(found: Schema, path: Path) -> Iterator[_Violation]:
    items = found["items"]
    if found.get("minItems"):
        yield _Violation("empty", path, [], path, None)
    if (length := found.get("maxItems", _HUGE)) < _HUGE:
        length = 128 if path[-1] == "tools" else length  # A run's 20 are our choice to make: 129 breaks both (LIM-05).
        # Equal tool names are refused too (ASST-12): each is its own.
        many = [_distinct(_example_of_many(items), number) for number in range(length + 1)]
        yield _Violation("too many", path, many, path, "array_above_max_length")
    for violation in _violations(items, (*path, 0)):
        value = [_nested(violation.path[len(path) + 1 :], violation.value)]
        yield _Violation(violation.rule, path, value, violation.at, violation.code, violation.prose)


def _example_of_many(items: Schema) -> Any:
    """An element for a list with many: a function where tools are listed, since only functions may repeat."""
    names = [name for name, _ in _choices(items)]
    return copy.deepcopy(_EXAMPLES["AssistantToolsFunction"]) if "AssistantToolsFunction" in names else example(items)


def _distinct(value: Any, number: int) -> Any:
    if isinstance(value, str):
        return f"{value}{number}"
    if isinstance(value, dict) and "function" in value:
        value["function"] = {"name": f"f{number}"}
    return cast("Any", value)


def _features(violation: _Violation) -> frozenset[str]:
    text = f"{param(violation.at)} {_words(violation.value)}"
    return frozenset(feature for word, feature in _FEATURES.items() if word in text)


def _words(value: Any) -> str:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return " ".join(f"{key} {_words(inner)}" for key, inner in items)
    if isinstance(value, list):
        return " ".join(_words(inner) for inner in cast("list[Any]", value)[:3])
    return str(value)[:100]


def valid_body(operation: str) -> dict[str, Any]:
    """The smallest body that an operation's schema takes. Ids in it are made up."""
    schema = openapi.operations()[operation].request
    if schema is None:
        raise KeyError(f"{operation} takes no JSON body")
    return example(schema)


def invalid_bodies(operation: str, base: dict[str, Any] | None = None) -> list[Invalid]:
    """Every derived body that an operation (its id, such as ``createRun``) must refuse; see the module.

    ``base`` holds the members of a body that works on the server at hand (a real ``assistant_id``, say): each body
    differs from it in one place. Without it `valid_body` is taken, which is enough where no id is looked up before the
    body is checked. Raises `KeyError` for an operation without a JSON body.
    """
    schema = openapi.operations()[operation].request
    if schema is None:
        raise KeyError(f"{operation} takes no JSON body")
    own = valid_body(operation)
    found: dict[str, Invalid] = {}
    for violation in _violations(schema, ()):
        place = param(violation.at)
        if violation.rule == "missing" and place.endswith(_OPTIONAL):
            continue
        body = {**own, **(base or {}), **_nested(violation.path, violation.value)}
        if violation.rule == "missing" and len(violation.at) == 1:
            body.pop(cast(str, violation.at[0]))
        name = f"{operation}: {place}: {violation.rule}"
        if name not in found:
            found[name] = Invalid(name, body, place, violation.code, _features(violation), violation.prose)
    return list(found.values())
