"""Sample values: whatever schema a caller writes, the value fits it."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.providers.sample import sample, sample_json

TREE = {
    "type": "object",
    "properties": {"value": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value", "children"],
    "additionalProperties": False,
}
LIST = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["n", "next"],
        }
    },
}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        TREE,
        LIST,
        {"type": ["string", "null"], "maxLength": 3},
        {"type": "string", "minLength": 40},
        {"type": "string", "enum": ["a", "b"]},
        {"const": {"x": [1]}},
        {"type": "integer", "minimum": 3, "maximum": 9, "multipleOf": 4},
        {"type": "integer", "exclusiveMaximum": -3},
        {"type": "integer", "exclusiveMinimum": 3},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "exclusiveMaximum": 0},
        {"type": "number", "maximum": -2.5},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3},
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 0},
        {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}]},
        {"anyOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"type": "null"}]},
        {"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"type": "integer"}}}]},
        {"type": "object", "required": ["free"], "additionalProperties": {"type": "integer"}},
        {"properties": {"d": {"type": "string", "format": "date-time"}, "u": {"type": "string", "format": "uuid"}}},
    ],
)
def test_it_fits(schema: dict[str, Any]) -> None:
    value = json.loads(sample_json(schema, "some words"))
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
    assert sample_json(schema, "some words") == sample_json(schema, "some words")


def _schemas() -> st.SearchStrategy[dict[str, Any]]:
    scalars = st.one_of(
        st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean", "null")]),
        st.builds(
            lambda a, n: {"type": "string", "minLength": a, "maxLength": a + n}, st.integers(0, 9), st.integers(0, 9)
        ),
        st.builds(
            lambda a, n: {"type": "integer", "minimum": a, "maximum": a + n}, st.integers(-9, 9), st.integers(0, 9)
        ),
        st.builds(
            lambda a, n: {"type": "number", "minimum": a, "maximum": a + n}, st.integers(-9, 9), st.integers(0, 9)
        ),
    )

    def deeper(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        names = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        return st.one_of(
            st.builds(lambda item, n: {"type": "array", "items": item, "minItems": n}, inner, st.integers(0, 2)),
            names.map(
                lambda p: {"type": "object", "properties": p, "required": sorted(p), "additionalProperties": False}
            ),
            names.map(lambda p: {"type": "object", "properties": p, "additionalProperties": False}),
            st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        )

    return st.recursive(scalars, deeper, max_leaves=8)


@given(_schemas())
def test_it_fits_any_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(sample(schema, "some words"), schema)
