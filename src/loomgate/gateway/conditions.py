"""Which condition of a conditional strategy holds for a request (GATEWAY CND-01 to CND-10). Pure.

The reference's documentation is followed where its code differs (CND-08): a key that the request does not have makes
its condition false, whatever the operator, and every key and operator of a query counts.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from loomgate.errors import ApiError
from loomgate.gateway import automaton
from loomgate.gateway.call import Request
from loomgate.wire.policy import Strategy

# ``metadata``, ``params`` and ``url`` (with ``pathname``), each a mapping.
Facts = Mapping[str, Mapping[str, Any]]

_MISSING = object()


def facts(request: Request) -> Facts:
    """What conditions and sticky rules may ask about ``request`` (CND-02, CND-10).

    Raises a 400 `ApiError` when a JSON body is none.
    """
    return {
        "metadata": request.naming.metadata,
        "params": {} if request.method == "GET" else request.fields,
        "url": {"pathname": f"/v1{request.path}"},
    }


def fact(facts: Facts, key: str, missing: object = None) -> object:
    """The value of ``key``: exactly a root and a name (CND-02); ``missing`` if there is none."""
    root, dot, name = key.partition(".")
    if not dot or "." in name:
        return missing
    return facts.get(root, {}).get(name, missing)


def choose(strategy: Strategy, facts: Facts) -> str:
    """The ``name`` of the target that ``strategy`` resolves to (CND-01). Raises a 400 `ApiError` (CND-09)."""
    budget = automaton.Budget()
    if not strategy.conditions:
        raise _error("No conditions passed in the query router")
    for condition in strategy.conditions:
        if holds(condition.query, facts, budget):
            return condition.then
    if strategy.default is None:
        raise _error("Query router did not resolve to any valid target")
    return strategy.default


def holds(query: Mapping[str, Any], facts: Facts, budget: automaton.Budget | None = None) -> bool:
    """Whether all of ``query`` is true of ``facts``; ``budget`` is what its patterns may cost.

    Raises a 400 `ApiError` for an unknown operator (CND-09) and for patterns that cannot be searched.
    """
    budget = budget or automaton.Budget()
    for key, value in query.items():
        if key == "$and":
            found = all(holds(item, facts, budget) for item in value)
        elif key == "$or":
            found = any(holds(item, facts, budget) for item in value)
        elif key.startswith("$"):
            raise _error(f"Unsupported operator used in the query router: {key}")
        else:
            found = _answers(fact(facts, key, _MISSING), value, budget)
        if not found:
            return False
    return True


def _answers(present: object, wanted: object, budget: automaton.Budget) -> bool:
    operators = cast("dict[str, Any]", wanted) if isinstance(wanted, dict) else {"$eq": wanted}
    for operator in operators:
        if operator not in OPERATORS:
            raise _error(f"Unsupported operator used in the query router: {operator}")
    if present is _MISSING:
        return False
    return all(OPERATORS[operator](present, operand, budget) for operator, operand in operators.items())


def _error(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_config")


# --- operators


def _same(a: object, b: object) -> bool:
    """Equal without conversion (CND-05): JSON knows one kind of number, and in Python ``True == 1``."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        left, right = cast("list[object]", a), cast("list[object]", b)
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(a, dict) and isinstance(b, dict):
        left, right = cast("dict[str, object]", a), cast("dict[str, object]", b)
        return left.keys() == right.keys() and all(_same(value, right[key]) for key, value in left.items())
    return a == b


def _in(present: object, options: object) -> bool:
    return isinstance(options, list) and any(_same(present, option) for option in cast("list[object]", options))


_NUMBER = re.compile(r"[\s\ufeff]*([+-]?(?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?|Infinity))")


def _number(value: object) -> float:
    """JavaScript's ``parseFloat``: the number that a text begins with; NaN, which compares false, for the rest."""
    if isinstance(value, bool):
        return float("nan")
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    if isinstance(value, str) and (found := _NUMBER.match(value)):
        return float(found[1])
    return float("nan")


def _text(value: object) -> str | None:
    """What JavaScript would search: text, or a plain value as text."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value) if abs(value) < 1 << 63 else None
        case float():
            return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
        case _:
            return None


def _regex(present: object, pattern: object, budget: automaton.Budget) -> bool:
    text = _text(present)
    return text is not None and isinstance(pattern, str) and automaton.search(pattern, text, budget)


Operator = Callable[[object, Any, automaton.Budget], bool]

OPERATORS: dict[str, Operator] = {
    "$eq": lambda present, wanted, _: _same(present, wanted),
    "$ne": lambda present, wanted, _: not _same(present, wanted),
    "$gt": lambda present, wanted, _: _number(present) > _number(wanted),
    "$gte": lambda present, wanted, _: _number(present) >= _number(wanted),
    "$lt": lambda present, wanted, _: _number(present) < _number(wanted),
    "$lte": lambda present, wanted, _: _number(present) <= _number(wanted),
    "$in": lambda present, options, _: _in(present, options),
    "$nin": lambda present, options, _: not _in(present, options),
    "$regex": _regex,
}
