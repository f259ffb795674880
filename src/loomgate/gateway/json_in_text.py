"""JSON that stands in a text, and whether it is valid under a client's schema.

What must live here: finding the JSON, and validating it within bounds. What must not: what follows from it.

A schema is a program in disguise: references can multiply its work without end, and ``pattern`` takes any pattern. So
the time is looked at with every keyword, patterns are bounded as everywhere (``patterns.py``), and nothing is fetched.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from itertools import islice
from typing import Any, cast

import msgspec

from loomgate import clock
from loomgate.gateway.patterns import Pattern

_FENCE = re.compile(r"(?<!`)```++[ \t]*+(?:json|JSON)?[ \t]*+\n(.*?)```", re.DOTALL)
_MOST_VALUES = 100
_MOST_MARKS = 100_000  # braces, quotes and backslashes that are looked at in one text
_MARK_WORTH = 1_000  # characters that cost as much as a mark
_LARGEST_SCHEMA = 64 * 1024  # bytes
_MOST_PATTERNS = 100  # of a schema; each takes its time to compile
_SECONDS = 1.0  # for one text
_MOST_MISTAKES = 20
_LONGEST_MESSAGE = 300  # characters; jsonschema's repeat the value

_decode = msgspec.json.Decoder().decode


def values(text: str) -> list[Any]:
    """The JSON in ``text``: all of it; or what is fenced off as code; or else every object in it, outermost only."""
    stripped = text.strip()
    if stripped[:1] in ("{", "[") and (whole := _read(stripped)) is not None:
        return [whole]
    fenced = [value for block in _FENCE.findall(text)[:_MOST_VALUES] if (value := _read(block.strip())) is not None]
    return fenced or list(islice(_objects(text), _MOST_VALUES))


def _read(text: str) -> Any:
    try:
        return _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    left = _MOST_MARKS
    at = 0
    while left > 0 and (at := text.find("{", at)) >= 0:
        end, used = _closing(text, at, left)
        left -= used
        found = _read(text[at:end]) if end else None
        if isinstance(found, dict):
            yield cast(dict[str, Any], found)
            at = end
        else:
            at += 1


_MARKS = re.compile(r'[{}"\\]')


def _closing(text: str, at: int, most: int) -> tuple[int, int]:
    """Behind the brace that closes the one at ``at`` (0 if none does), and how many marks were looked at for it."""
    depth = used = 0
    quoted = False
    escaped = -1
    for mark in _MARKS.finditer(text, at):
        used += 1
        here = mark.start()
        if here == escaped:
            continue
        char = text[here]
        if quoted:
            if char == "\\":
                escaped = here + 1
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char != "\\":
            depth += 1 if char == "{" else -1
        if depth == 0 or used == most:
            break
    else:
        return 0, used + len(text) // _MARK_WORTH
    return (mark.end() if depth == 0 else 0), used


class Schema:
    """A JSON Schema, ready for use: draft 2020-12 unless its ``$schema`` names another."""

    def __init__(self, source: dict[str, Any] | str) -> None:
        """Raises `ValueError` that says what is wrong with ``source``, an object or the text of one."""
        import jsonschema
        from jsonschema.validators import validator_for

        encoded = msgspec.json.encode(source) if isinstance(source, dict) else source.encode()
        if len(encoded) > _LARGEST_SCHEMA:
            raise ValueError(f"the schema is larger than {_LARGEST_SCHEMA} bytes")
        try:
            self._schema = msgspec.json.decode(encoded, type=dict[str, Any])
            kind: Any = validator_for(self._schema, default=jsonschema.Draft202012Validator)
            kind.check_schema(self._schema)
            patterns = set(_look_through(self._schema))
            if len(patterns) > _MOST_PATTERNS:
                raise ValueError(f"the schema has more than {_MOST_PATTERNS} patterns")
            self._patterns = {text: Pattern(text) for text in patterns}
        except jsonschema.SchemaError as error:
            raise ValueError(f"schema: {error.message} at {error.json_path}") from None
        except RecursionError:
            raise ValueError("the schema is nested too deeply") from None
        except msgspec.DecodeError as error:
            raise ValueError(f"schema: {error}") from None
        self._kind = _bounded(kind)

    def judged(self, values: Sequence[Any]) -> tuple[Any, list[dict[str, str]]]:
        """The first of ``values`` without mistakes, or the last; and its mistakes: ``path`` and ``message`` of a few.

        It may take a second: not on the event loop. Raises `TimeoutError` when it would take more.
        """
        before = _bounds.set((clock.monotonic() + _SECONDS, self._patterns))
        try:
            value, found = None, list[dict[str, str]]()
            for value in values:
                found = self._mistakes(value)
                if not found:
                    break
            return value, found
        finally:
            _bounds.reset(before)

    def _mistakes(self, value: Any) -> list[dict[str, str]]:
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import EMPTY_REGISTRY

        found: list[dict[str, str]] = []
        try:
            for error in self._kind(self._schema, registry=EMPTY_REGISTRY).iter_errors(value):
                path = ".".join(str(step) for step in error.absolute_path)
                found.append({"path": path, "message": error.message[:_LONGEST_MESSAGE]})
                if len(found) == _MOST_MISTAKES:
                    break
        except (RecursionError, Unresolvable) as error:
            circles = isinstance(error, RecursionError)
            what = "goes round in circles" if circles else "refers to something that is not in it"
            raise TimeoutError(f"The schema {what}") from None
        return found


# Until when a validation may go on, and the patterns of its schema.
_bounds: ContextVar[tuple[float, Mapping[str, Pattern]]] = ContextVar("bounds")

_Keyword = Callable[[Any, Any, Any, Any], Any]


@cache
def _bounded(kind: Any) -> Any:
    """The validator class ``kind``, within bounds."""
    from jsonschema import validators

    extend = cast(Any, validators).extend  # it has no types
    rules = {name: _timed(rule) for name, rule in cast(dict[str, _Keyword], kind.VALIDATORS).items()}
    own = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    return extend(kind, {**rules, **own})


def _timed(rule: _Keyword) -> _Keyword:
    def timed(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if clock.monotonic() > _bounds.get()[0]:
            raise TimeoutError("Validating against the schema took too long")
        return rule(validator, value, instance, schema)

    return timed


def _matches(pattern: str, text: str) -> bool:
    end, patterns = _bounds.get()
    if clock.monotonic() > end:
        raise TimeoutError("Validating against the schema took too long")
    return patterns[pattern].search_now(text) is not None


def _pattern(validator: Any, value: str, instance: Any, _: Any) -> Any:
    from jsonschema import ValidationError

    if validator.is_type(instance, "string") and not _matches(value, instance):
        yield ValidationError(f"{instance!r} does not match {value!r}")


def _pattern_properties(validator: Any, value: dict[str, Any], instance: Any, _: Any) -> Any:
    if validator.is_type(instance, "object"):
        for pattern, below in value.items():
            for name, item in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(item, below, path=name, schema_path=pattern)


def _additional_properties(validator: Any, value: Any, instance: Any, schema: dict[str, Any]) -> Any:
    from jsonschema import ValidationError

    if not validator.is_type(instance, "object"):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    others = [n for n in instance if n not in named and not any(_matches(pattern, n) for pattern in patterns)]
    if value is False and others:
        yield ValidationError(f"Additional properties are not allowed: {', '.join(others)}")
    elif value is not True:
        for name in others:
            yield from validator.descend(instance[name], value, path=name)


def _unique_items(validator: Any, value: Any, instance: Any, _: Any) -> Any:
    from jsonschema import ValidationError

    # In one pass: jsonschema compares everything with everything when the items cannot be sorted.
    if value and validator.is_type(instance, "array"):
        items = {msgspec.json.encode(_canonical(item), order="sorted") for item in instance}
        if len(items) < len(instance):
            yield ValidationError(f"{instance!r} has non-unique elements")


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _canonical(item) for name, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return [_canonical(item) for item in cast(list[Any], value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _look_through(schema: Any) -> Iterator[str]:
    """The patterns of ``schema``. Raises `ValueError` for a reference to elsewhere, and for what has no bounds."""
    texts: list[str] = []
    ids: set[str] = set()
    refs: list[str] = []
    keywords: set[str] = set()
    left: list[Any] = [schema]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            known = cast(dict[str, Any], item)
            keywords.update(known)
            if isinstance(known.get("pattern"), str):
                texts.append(known["pattern"])
            if isinstance(known.get("patternProperties"), dict):
                texts += list(known["patternProperties"])
            if isinstance(known.get("$id"), str):
                ids.add(known["$id"].rstrip("#"))
            refs += [known[name] for name in ("$ref", "$dynamicRef") if isinstance(known.get(name), str)]
            left += known.values()
        elif isinstance(item, list):
            left += cast(list[Any], item)
    for ref in refs:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", ref) and ref.partition("#")[0] not in ids:
            raise ValueError(f"the schema refers to {ref!r}, which is not in it; nothing is fetched")
    # The library matches these two together with patterns of its own engine.
    if "unevaluatedProperties" in keywords and "patternProperties" in keywords:
        raise ValueError("the schema has both unevaluatedProperties and patternProperties; use additionalProperties")
    yield from texts
