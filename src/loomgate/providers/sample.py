"""A value that fits a JSON Schema: what the scripted model answers when a caller asks for structured output.

What must live here: the walk over a schema, pure and deterministic. What must not: validation.
"""

from typing import Any, cast

import msgspec

Schema = dict[str, Any]

_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_DEEPEST = 12


def sample(schema: Schema | bool, words: str) -> Any:
    """A JSON value for ``schema``, the same each time; free strings are ``words`` (cut or padded to the limits).

    Understands the keywords that structured outputs allow: type, enum, const, properties, required, items,
    prefixItems, anyOf, oneOf, allOf, ``$ref`` into the same schema, numeric and length limits, and format. A
    ``pattern`` is met only by way of ``default`` or ``examples``.
    """
    root = schema if isinstance(schema, dict) else {}
    return _value(root, root, words, 0, ())


def sample_json(schema: Schema | None, words: str) -> str:
    """`sample` as JSON text; no schema gives ``{}``."""
    return msgspec.json.encode(sample(schema or {"type": "object"}, words)).decode()


def _value(node: Any, root: Schema, words: str, depth: int, path: tuple[str, ...]) -> Any:
    if not isinstance(node, dict):
        return words
    schema = _resolved(cast(Schema, node), root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf"):
        if options := cast(list[Any], schema.get(key) or []):
            rest = {name: value for name, value in schema.items() if name != key}
            best = min(options, key=lambda option: _weight(option, root)) if depth else options[0]
            chosen: Any = best
            return _value(_merged(rest, chosen, root), root, words, depth, path)
    return _OF_TYPE[_type(schema)](schema, root, words, depth, path)


def _resolved(schema: Schema, root: Schema) -> Schema:
    """``schema`` with ``$ref`` followed and ``allOf`` folded in."""
    for _ in range(_DEEPEST):
        target = schema.get("$ref")
        if not isinstance(target, str) or not target.startswith("#"):
            break
        found: Any = root
        for step in target.lstrip("#/").split("/") if target not in ("#", "#/") else []:
            name = step.replace("~1", "/").replace("~0", "~")
            found = cast(Schema, found).get(name, {}) if isinstance(found, dict) else {}
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**cast(Schema, found), **rest} if isinstance(found, dict) else rest
    for part in cast(list[Any], schema.get("allOf") or []):
        schema = _merged({key: value for key, value in schema.items() if key != "allOf"}, part, root)
    return schema


def _merged(schema: Schema, part: Any, root: Schema) -> Schema:
    if not isinstance(part, dict):
        return schema
    other = _resolved(cast(Schema, part), root)
    both: Schema = {**schema, **other}
    for key in ("properties", "$defs"):
        if key in schema and key in other:
            both[key] = {**schema[key], **other[key]}
    if "required" in schema and "required" in other:
        both["required"] = [*schema["required"], *other["required"]]
    return both


def _weight(option: Any, root: Schema) -> int:
    """Scalars first when choosing among alternatives below the top: that ends recursive schemas."""
    if not isinstance(option, dict):
        return 0
    return {"array": 1, "object": 2}.get(_type(_resolved(cast(Schema, option), root)), 0)


def _type(schema: Schema) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        names = [name for name in cast(list[str], kind) if name != "null"]
        kind = names[0] if names else "null"
    if isinstance(kind, str) and kind in _OF_TYPE:
        return kind
    if "properties" in schema or "required" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _object(schema: Schema, root: Schema, words: str, depth: int, path: tuple[str, ...]) -> dict[str, Any]:
    properties = cast(dict[str, Any], schema.get("properties") or {})
    required = cast(list[str], schema.get("required") or [])
    made: dict[str, Any] = {}
    for name, node in properties.items():
        ref = str(cast(Schema, node).get("$ref", "")) if isinstance(node, dict) else ""
        again = bool(ref) and ref in path
        if (name in required or (depth < 3 and not again)) and depth < _DEEPEST:
            made[name] = _value(node, root, words, depth + 1, (*path, ref) if ref else path)
    for name in required:
        if name not in made and depth < _DEEPEST:
            extra = schema.get("additionalProperties")
            made[name] = _value(extra, root, words, depth + 1, path)
    return made


def _array(schema: Schema, root: Schema, words: str, depth: int, path: tuple[str, ...]) -> list[Any]:
    first = [_value(node, root, words, depth + 1, path) for node in cast(list[Any], schema.get("prefixItems") or [])]
    least = int(schema.get("minItems", 0))
    # Deep arrays stay as short as they may, so that a schema that contains itself comes to an end.
    wanted = max(least, 1 if depth < 3 and "items" in schema and schema.get("maxItems") != 0 else 0)
    item = schema.get("items", {"type": "string"})
    if depth >= _DEEPEST:
        return first
    return first + [_value(item, root, words, depth + 1, path) for _ in range(wanted - len(first))]


def _string(schema: Schema, _root: Schema, words: str, _depth: int, _path: tuple[str, ...]) -> str:
    text = _FORMATS.get(str(schema.get("format")), words)
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    text = text.ljust(least, ".")
    return text if most is None else text[: int(most)]


def _integer(schema: Schema, _root: Schema, _words: str, _depth: int, _path: tuple[str, ...]) -> int:
    step = int(schema.get("multipleOf") or 1) or 1
    least, most = _bounds(schema, 1)
    if least is not None:
        return -int(-least // step) * step
    return int(most // step) * step if most is not None and most < 0 else 0


def _number(schema: Schema, _root: Schema, _words: str, _depth: int, _path: tuple[str, ...]) -> float | int:
    least, most = _bounds(schema, 0)
    if least is not None and "exclusiveMinimum" in schema:
        return (least + most) / 2 if most is not None else least + 1
    if least is not None:
        return least
    if most is not None and most <= 0:
        return most - 1 if "exclusiveMaximum" in schema else most
    return 0


def _bounds(schema: Schema, open_by: int) -> tuple[float | None, float | None]:
    least, most = schema.get("minimum"), schema.get("maximum")
    if (over := schema.get("exclusiveMinimum")) is not None:
        least = over + open_by
    if (under := schema.get("exclusiveMaximum")) is not None:
        most = under - open_by
    return least, most


def _boolean(*_: Any) -> bool:
    return True


def _null(*_: Any) -> None:
    return None


_OF_TYPE: dict[str, Any] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "null": _null,
}
