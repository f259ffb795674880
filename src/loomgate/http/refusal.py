"""Why a body is not what its type says: the first mistake, in the words of BEHAVIOUR LIM-50 to LIM-59.

Pure: walks a declared type (a Struct of ``wire/``) and a decoded JSON value side by side. It judges by the type's own
description, so a limit that changes in ``wire/`` changes here.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast

import msgspec
import msgspec.inspect as shapes

from loomgate.errors import ApiError, bad_request

_LONGEST = 100  # characters of a client's value or key that an error repeats


def find(type: type[Any], value: object) -> ApiError | None:
    """The 400 for the first mistake in ``value`` (decoded JSON) as ``type``; ``None`` if there is none to be found."""
    return _find(shapes.type_info(type), value, "")


def shortened(text: str, longest: int = _LONGEST) -> str:
    """``text`` as an error may repeat it: at most ``longest`` characters of it."""
    return text if len(text) <= longest else text[:longest] + "…"


def missing(param: str) -> ApiError:
    """LIM-56."""
    return bad_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")


def too_long(param: str, limit: int, length: int) -> ApiError:
    """LIM-52."""
    return bad_request(
        f"Invalid '{param}': string too long. Expected a string with maximum length {limit}, "
        f"but got a string with length {length} instead.",
        param,
        "string_above_max_length",
    )


def too_many(param: str, limit: int, length: int) -> ApiError:
    """LIM-54."""
    return bad_request(
        f"Invalid '{param}': array too long. Expected an array with maximum length {limit}, "
        f"but got an array with length {length} instead.",
        param,
        "array_above_max_length",
    )


def out_of_range(param: str, kind: str, bound: float, value: object, *, above: bool) -> ApiError:
    """LIM-55, LIST-14, LIST-15; ``kind`` is integer or decimal."""
    side, sign, code = ("above maximum", "<=", "above_max") if above else ("below minimum", ">=", "below_min")
    return bad_request(
        f"Invalid '{param}': {kind} {side} value. Expected a value {sign} {bound:g}, "
        f"but got {shortened(str(value))} instead.",
        param,
        f"{kind}_{code}_value",
    )


def not_one_of(param: str, value: str, supported: list[str]) -> ApiError:
    """LIM-58."""
    quoted = [f"'{item}'" for item in supported]
    words = ", ".join(quoted[:-1]) + ", and " + quoted[-1] if len(quoted) > 2 else " and ".join(quoted)
    return bad_request(f"Invalid value: '{shortened(value)}'. Supported values are: {words}.", param, "invalid_value")


def wrong_type(param: str, expected: str, value: object) -> ApiError:
    """LIM-57; ``expected`` with its article."""
    where = f"'{param}'" if param else "the request body"
    return bad_request(
        f"Invalid type for {where}: expected {expected}, but got {_got(value)} instead.", param or None, "invalid_type"
    )


def not_a_time(param: str, value: str) -> ApiError:
    """A text that is no time."""
    return bad_request(
        f"Invalid '{param}': expected a time as ISO 8601 has it, such as 2030-01-31T12:00:00Z, but got "
        f"'{shortened(value)}'.",
        param,
        "invalid_value",
    )


def mismatch(param: str, pattern: str) -> ApiError:
    """LIM-53."""
    return bad_request(
        f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern '{pattern}'.",
        param,
        "invalid_value",
    )


def _got(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


_WORDS: list[tuple[type[shapes.Type], str]] = [
    (shapes.StrType, "a string"),
    (shapes.LiteralType, "a string"),
    (shapes.DateTimeType, "a string"),
    (shapes.BoolType, "a boolean"),
    (shapes.IntType, "an integer"),
    (shapes.FloatType, "a number"),
    (shapes.ListType, "an array"),
    (shapes.StructType, "an object"),
    (shapes.DictType, "an object"),
]


def _expected(options: list[shapes.Type]) -> str:
    words: dict[str, None] = {}
    for option in options:
        for shape, word in _WORDS:
            if isinstance(option, shape):
                words[word] = None
    return " or ".join(words)


def _options(shape: shapes.Type) -> Iterator[shapes.Type]:
    if isinstance(shape, shapes.Metadata):
        yield from _options(shape.type)
    elif isinstance(shape, shapes.UnionType):
        for option in shape.types:
            yield from _options(option)
    else:
        yield shape


def _accepts(shape: shapes.Type, value: object) -> bool:
    """Is ``value`` of the JSON kind that ``shape`` describes?"""
    match value:
        case bool():
            return isinstance(shape, shapes.BoolType)
        case int():
            return isinstance(shape, shapes.IntType | shapes.FloatType)
        case float():
            return isinstance(shape, shapes.FloatType)
        case str():
            return isinstance(shape, shapes.StrType | shapes.LiteralType | shapes.DateTimeType)
        case list():
            return isinstance(shape, shapes.ListType)
        case dict():
            return isinstance(shape, shapes.StructType | shapes.DictType)
        case _:
            return isinstance(shape, shapes.NoneType)


def _find(shape: shapes.Type, value: object, at: str) -> ApiError | None:
    options = list(_options(shape))
    if any(isinstance(option, shapes.AnyType) for option in options):
        return None
    meant = [option for option in options if _accepts(option, value)]
    if not meant:
        return wrong_type(at, _expected(options), value)
    match value:
        case dict():
            return _object(meant, cast("dict[str, object]", value), at)
        case list():
            return _array(cast("shapes.ListType", meant[0]), cast("list[object]", value), at)
        case str():
            return _string(meant, value, at)
        case bool():
            return None
        case int() | float():
            return _number(cast("shapes.IntType | shapes.FloatType", meant[0]), value, at)
        case _:
            return None


def _within(at: str, key: str) -> str:
    key = shortened(key)
    return f"{at}.{key}" if at else key


def _object(meant: list[shapes.Type], value: dict[str, object], at: str) -> ApiError | None:
    first = meant[0]
    if isinstance(first, shapes.DictType):
        return _map(first, value, at)
    structs = [shape for shape in meant if isinstance(shape, shapes.StructType)]
    tag_field = structs[0].tag_field
    if tag_field is None:
        return _struct(structs[0], value, at)
    place = _within(at, tag_field)
    if tag_field not in value:
        return missing(place)
    tag = value[tag_field]
    if not isinstance(tag, str):
        return wrong_type(place, "a string", tag)
    chosen = next((shape for shape in structs if shape.tag == tag), None)
    if chosen is None:
        return not_one_of(place, tag, [str(shape.tag) for shape in structs])
    return _struct(chosen, value, at)


def _struct(shape: shapes.StructType, value: dict[str, object], at: str) -> ApiError | None:
    fields = {field.encode_name: field for field in shape.fields}
    for key, item in value.items():
        if key in fields:
            found = _find(fields[key].type, item, _within(at, key))
            if found is not None:
                return found
        elif shape.forbid_unknown_fields and key != shape.tag_field:
            place = _within(at, key)
            return bad_request(f"Unknown parameter: '{place}'.", place, "unknown_parameter")
    for name, field in fields.items():
        if field.required and name not in value:
            return missing(_within(at, name))
    return None


def _map(shape: shapes.DictType, value: dict[str, object], at: str) -> ApiError | None:
    if shape.max_length is not None and len(value) > shape.max_length:
        return bad_request(
            f"Invalid '{at}': too many properties. Expected an object with at most {shape.max_length} properties, "
            f"but got an object with {len(value)} properties instead.",
            at,
            "object_above_max_properties",
        )
    longest = shape.key_type.max_length if isinstance(shape.key_type, shapes.StrType) else None
    for key, item in value.items():
        place = _within(at, key)
        if longest is not None and len(key) > longest:
            return bad_request(
                f"Invalid property name in '{at}': '{shortened(key)}' is too long. Expected a property name with "
                f"maximum length {longest}, but got a property name with length {len(key)} instead.",
                at,
                "property_name_above_max_length",
            )
        found = _find(shape.value_type, item, place)
        if found is not None:
            return found
    return None


def _array(shape: shapes.ListType, value: list[object], at: str) -> ApiError | None:
    if shape.max_length is not None and len(value) > shape.max_length:
        return too_many(at, shape.max_length, len(value))
    for index, item in enumerate(value):
        found = _find(shape.item_type, item, f"{at}[{index}]")
        if found is not None:
            return found
    return None


def _string(meant: list[shapes.Type], value: str, at: str) -> ApiError | None:
    text = next((shape for shape in meant if isinstance(shape, shapes.StrType)), None)
    if text is None and any(isinstance(shape, shapes.DateTimeType) for shape in meant):
        return None if _is_time(value) else not_a_time(at, value)
    if text is None:
        supported = [str(item) for shape in meant if isinstance(shape, shapes.LiteralType) for item in shape.values]
        return None if value in supported else not_one_of(at, value, supported)
    if text.min_length is not None and len(value) < text.min_length:
        return bad_request(
            f"Invalid '{at}': empty string. Expected a string with minimum length {text.min_length}, "
            "but got an empty string instead.",
            at,
            "empty_string",
        )
    if text.max_length is not None and len(value) > text.max_length:
        return too_long(at, text.max_length, len(value))
    if text.pattern is not None and re.search(text.pattern, value) is None:
        return mismatch(at, text.pattern)
    return None


def _is_time(text: str) -> bool:
    try:
        msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return False
    return True


def _number(shape: shapes.IntType | shapes.FloatType, value: float, at: str) -> ApiError | None:
    kind = "integer" if isinstance(shape, shapes.IntType) else "decimal"
    if shape.gt is not None and value <= shape.gt:
        return bad_request(
            f"Invalid '{at}': {kind} below minimum value. Expected a value > {shape.gt:g}, but got "
            f"{shortened(str(value))} instead.",
            at,
            f"{kind}_below_min_value",
        )
    if shape.ge is not None and value < shape.ge:
        return out_of_range(at, kind, shape.ge, value, above=False)
    if shape.le is not None and value > shape.le:
        return out_of_range(at, kind, shape.le, value, above=True)
    return None
