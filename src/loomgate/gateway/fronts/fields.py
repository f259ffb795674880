"""Bodies that clients send, as declared types: or the 400 that names the field.

What must live here: what fronts share in reading a request. What must not: a format.
"""

import re
from typing import Any, TypeVar

import msgspec

from loomgate.errors import ApiError, bad_request

T = TypeVar("T")

_PLACE = re.compile(r"(.*) - at `\$\.?(.*?)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.+)`")
_DEFAULT = "portkey-default"


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` without those that ask for the default (GATEWAY TR-04)."""
    if _DEFAULT in [value for value in fields.values() if isinstance(value, str)]:
        return {name: value for name, value in fields.items() if value != _DEFAULT}
    return fields


def converted(fields: Any, type: type[T], within: str = "") -> T:
    """``fields`` (decoded JSON, found at ``within``) as ``type``. Raises a 400 `ApiError` that names the field."""
    try:
        return msgspec.convert(fields, type)
    except msgspec.ValidationError as error:
        raise _named(str(error), within) from None
    except RecursionError:
        raise bad_request("Invalid body: expected JSON that is nested less deeply.") from None


def _named(said: str, within: str) -> ApiError:
    found = _PLACE.fullmatch(said)
    why, place = (found[1], found[2]) if found else (said, "")
    if missing := _MISSING.fullmatch(why):
        place = _joined(_joined(within, place), missing[1])
        return bad_request(f"Missing required parameter: '{place}'.", place, "missing_required_parameter")
    place = _joined(within, place)
    why = why.replace("`", "").replace("Expected", "expected")
    return bad_request(f"Invalid value for '{place}': {why}." if place else f"Invalid body: {why}.", place or None)


def _joined(within: str, place: str) -> str:
    separator = "." if within and place and not place.startswith("[") else ""
    return within + separator + place


def clamped(value: float | None, low: float, high: float) -> float | None:
    """``value`` within its range: numbers beyond it are not refused (GATEWAY TR-02)."""
    return None if value is None else min(max(value, low), high)


def unknown(fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """The fields of a body that are not ``known``, and are not null: for the endpoint to judge."""
    if known.issuperset(fields):
        return {}
    return {name: value for name, value in fields.items() if name not in known and value is not None}
