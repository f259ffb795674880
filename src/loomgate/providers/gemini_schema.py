"""JSON Schema as Gemini takes it in ``parametersJsonSchema`` and ``responseJsonSchema``. Pure.

What must live here: the differences between JSON Schema as clients of OpenAI write it and the subset that Google
documents for these fields ($id, $defs, $ref, $anchor, type, format, title, description, enum, items, prefixItems,
the limits of arrays and numbers, anyOf, oneOf, properties, additionalProperties, required). What must not: a request.
"""

from typing import Any, cast

Schema = dict[str, Any]

# Where schemas stand within a schema: one, a list of them, or a map of them by name. Anything else is a value.
_ONE = frozenset({"items", "additionalProperties"})
_LIST = frozenset({"anyOf", "oneOf", "prefixItems"})
_MAP = frozenset({"properties", "$defs"})
_WORDS = frozenset({"title", "description", "default", "examples"})


def google_schema(schema: Schema) -> Schema:
    """``schema`` with the same meaning, in the keywords that Gemini knows.

    ``const`` becomes an ``enum`` of one, ``definitions`` become ``$defs``, the members of an ``allOf`` are merged into
    their schema, and words beside a ``$ref`` are left out, since Google refuses anything there. Any other keyword is
    sent as it is: Gemini passes over those that it does not know. The order of properties stays: it is the answer's.
    """
    return _converted(schema, schema)


def _converted(node: Schema, root: Schema) -> Schema:
    made = _merged(node, root, ())
    if isinstance(made.get("$ref"), str):
        made = {key: value for key, value in made.items() if key.startswith("$") or key == "definitions"}
        made["$ref"] = made["$ref"].replace("#/definitions/", "#/$defs/")
    if isinstance(made.get("const"), str | int | float) and not isinstance(made["const"], bool):
        made["enum"] = [made.pop("const")]
    if "definitions" in made:
        made["$defs"] = {**made.pop("definitions"), **made.get("$defs", {})}
    return {key: _within(key, value, root) for key, value in made.items()}


def _within(key: str, value: Any, root: Schema) -> Any:
    def one(schema: Any) -> Any:
        return _converted(cast(Schema, schema), root) if isinstance(schema, dict) else schema  # or true, false

    if key in _ONE:
        return one(value)
    if key in _LIST and isinstance(value, list):
        return [one(schema) for schema in cast(list[Any], value)]
    if key in _MAP and isinstance(value, dict):
        return {name: one(schema) for name, schema in cast(Schema, value).items()}
    return value


def _merged(node: Schema, root: Schema, path: tuple[str, ...]) -> Schema:
    """A copy of ``node`` with the members of its ``allOf`` put into it; its own keywords win.

    A member that is a reference stays one where it stands alone, and is looked up where it meets other keywords.
    ``path``: the references being looked up; one that leads to itself says nothing.
    """
    made = {key: value for key, value in node.items() if key != "allOf"}
    members = [cast(Schema, member) for member in node.get("allOf") or () if isinstance(member, dict)]
    if len(members) == 1 and _WORDS.issuperset(made) and "allOf" not in members[0]:
        return {**made, **members[0]}
    for member in members:
        resolved, further = member, path
        if isinstance(reference := member.get("$ref"), str):
            resolved, further = ({} if reference in path else _found(reference, root)), (*path, reference)
        for key, value in _merged(resolved, root, further).items():
            if key == "required" and key in made:
                made[key] = list(dict.fromkeys([*made[key], *value]))
            elif key in _MAP and key in made:
                made[key] = {**value, **made[key]}
            else:
                made.setdefault(key, value)
    return made


def _found(reference: str, root: Schema) -> Schema:
    """The schema that ``reference`` points to within ``root`` (RFC 6901), empty if there is none."""
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = cast(Schema, found).get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return cast(Schema, found) if isinstance(found, dict) else {}
