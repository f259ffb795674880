"""What a target changes about a request's body: defaults, overrides, and what is dropped (GATEWAY CFG-16 to CFG-18).

Pure: the fields that come in are never changed, and come out themselves when there is nothing to change, so that the
client's bytes can go on as they are.
"""

import re
from functools import lru_cache
from typing import Any, cast

from loomgate.gateway.call import Effective, Fields

# A step down: a key, an index, or None for every element.
_Step = str | int | None
_STEP = re.compile(r"([^.\[\]]+)|\[([0-9]+|\*)\]")


def apply(fields: Fields, effective: Effective) -> Fields:
    """``fields`` with the target's params: defaults first, then overrides, then what is dropped (CFG-36)."""
    result = fields
    if effective.default_params:
        missing = {key: value for key, value in effective.default_params.items() if key not in fields}
        if missing:
            result = {**result, **missing}
    if effective.override_params:
        changed = {key: value for key, value in effective.override_params.items() if not _holds(result, key, value)}
        if changed:
            result = {**result, **changed}
    for path in effective.drop_params:
        result = cast(Fields, _without(result, _steps(path)))
    return result


def _holds(fields: Fields, key: str, value: object) -> bool:
    """Whether ``key`` has this plain value already. In Python ``True == 1 == 1.0``, in JSON they are three."""
    present = fields.get(key)
    return type(present) is type(value) and isinstance(value, str | int | float) and present == value


@lru_cache(maxsize=4096)
def _steps(path: str) -> tuple[_Step, ...]:
    return tuple(key or (None if index == "*" else int(index)) for key, index in _STEP.findall(path))


def _without(value: Any, steps: tuple[_Step, ...]) -> Any:
    """``value`` without what is at ``steps``: a copy along the way there, or itself if nothing is."""
    step, below = steps[0], steps[1:]
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if not isinstance(step, str) or step not in members:
            return members
        if not below:
            return {key: item for key, item in members.items() if key != step}
        inner = _without(members[step], below)
        return members if inner is members[step] else {**members, step: inner}
    if isinstance(value, list):
        return _without_items(cast("list[Any]", value), step, below)
    return value


def _without_items(items: list[Any], step: _Step, below: tuple[_Step, ...]) -> list[Any]:
    if step is None:
        if not below:
            return [] if items else items
        inner = [_without(item, below) for item in items]
        return items if all(new is old for new, old in zip(inner, items, strict=True)) else inner
    if not isinstance(step, int) or step >= len(items):
        return items
    if not below:
        return items[:step] + items[step + 1 :]
    inner = _without(items[step], below)
    return items if inner is items[step] else [*items[:step], inner, *items[step + 1 :]]
