"""Reading a routing config, and the text of the refusal when it is not one (GATEWAY sections 5 and 6).

What must live here: what is wrong with the shape, the size, the sense or the queries of a config, and how that is told.
What must not: the shapes themselves (``wire/policy``), or whether what a config names exists (``gateway/``).
"""

from functools import lru_cache
from typing import Any, cast

import msgspec

from loomgate.errors import ApiError
from loomgate.wire.policy import Breaker, Config, Strategy
from loomgate.wire.provider_data import OPTION_HEADERS, OPTIONS, ProviderData

MOST_NODES = 1_000
DEEPEST = 16
LONGEST_PATTERN = 1_000  # characters of a ``$regex``

_MOST_DETAILS = 20
_decode = msgspec.json.Decoder().decode

_FORWARD_ITSELF = "forward_headers must not contain the 'x-portkey-forward-headers' header"
_NO_CONDITIONS = "No conditions passed in the query router"
_NO_TARGET = "Invalid target name found in the query router: {}"
_NO_OPERATOR = "Unsupported operator used in the query router: {}"
# The texts of the reference that stand for themselves: they come first in the message (CND-09, VAL-09).
_OWN_TEXTS = (_FORWARD_ITSELF, _NO_CONDITIONS, _NO_TARGET.format(""), _NO_OPERATOR.format(""))


def decode_config(data: bytes | str | dict[str, Any], *, where: str = "x-portkey-config") -> Config:
    """The config that ``data`` (JSON text, or what it decodes to) is; ``where`` names its place in errors.

    Equal texts give one object for a while, so that what was made of it can be kept with it. Do not change it.
    Raises a 400 `ApiError` whose message begins as the reference's does (VAL-06 to VAL-08, CND-09) and whose
    ``details`` say of each mistake where it is and what was expected.
    """
    if isinstance(data, dict):
        return _read(data, where)
    return _remembered(data, where) if len(data) <= _LONGEST_REMEMBERED else _decoded(data, where)


def _decoded(data: bytes | str, where: str) -> Config:
    try:
        raw = _decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise ApiError(
            400,
            f"Invalid config passed. You need to pass a valid json (in {where})",
            param=where,
            code="invalid_config",
        ) from None
    return _read(raw, where)


# A client sends the same header with every request. Few and short, so that nobody fills the memory with them.
_LONGEST_REMEMBERED = 4096
_remembered = lru_cache(maxsize=64)(_decoded)


def _read(raw: object, where: str) -> Config:
    if not isinstance(raw, dict):
        raise _refused(where, [_detail("", "Expected `object`, a config")])
    raw = cast("dict[str, Any]", raw)
    if "options" in raw:
        raise ApiError(
            400,
            "This version of config is not supported in this route. Please migrate to the latest version",
            param=where,
            code="invalid_config",
            details=[_detail("options", "Expected `strategy` and `targets` instead")],
        )
    if mistakes := _too_big(raw):
        raise _refused(where, mistakes)
    try:
        config = msgspec.convert(raw, Config)
        mistakes = _senseless(config, "")
    except msgspec.ValidationError as error:
        config, mistakes = None, _misshapen(raw, "") or [_detail(*_place(str(error)))]
    except RecursionError:
        config, mistakes = None, [_detail("", f"Expected values nested at most {DEEPEST} deep in queries")]
    if mistakes or config is None:
        raise _refused(where, mistakes)
    return config


def check_options(options: dict[str, str]) -> None:
    """Hold provider data that came in headers to the limits of a config's.

    Raises a 400 `ApiError` naming the header.
    """
    try:
        msgspec.convert(options, ProviderData)
    except msgspec.ValidationError as error:
        path, message = _place(str(error))
        header = next((key for key, name in OPTION_HEADERS.items() if name == path), path.replace("_", "-"))
        raise ApiError(
            400, f"Invalid header 'x-portkey-{header}': {message}.", param=f"x-portkey-{header}", code="invalid_value"
        ) from None


def config_error(where: str, path: str, message: str) -> ApiError:
    """The 400 for one mistake at ``path`` of a config, in the form of VAL-06."""
    return _refused(where, [_detail(path, message)])


def _refused(where: str, details: list[str]) -> ApiError:
    path, _, message = details[0].removeprefix("path: ").partition(", message: ")
    if message.startswith(_OWN_TEXTS):
        text = f"{message} (in {where}, path: {path})"
    else:
        text = f"Invalid config passed. In {where}, {details[0]}"
    if len(details) > 1:
        text += f" (and {len(details) - 1} more)"
    return ApiError(400, text, param=where, code="invalid_config", details=details[:_MOST_DETAILS])


def _detail(path: str, message: str) -> str:
    return f"path: {path or 'config'}, message: {message}"


def _at(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _short(text: str, longest: int = 100) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _too_big(raw: dict[str, Any]) -> list[str]:
    level: list[object] = [raw]
    nodes = depth = 0
    while level:
        depth += 1
        nodes += len(level)
        if depth > DEEPEST:
            return [_detail("targets", f"Expected targets nested at most {DEEPEST} deep")]
        if nodes > MOST_NODES:
            return [_detail("targets", f"Expected at most {MOST_NODES} targets in all")]
        below: list[object] = []
        for node in level:
            targets = cast("dict[str, Any]", node).get("targets") if isinstance(node, dict) else None
            if isinstance(targets, list):
                below += cast("list[object]", targets)
        level = below
    return []


# --- what is wrong with a shape

_FIELDS: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Config)}
# Messages of the reference for single fields (CFG-01, CFG-14), by the end of the path.
_MESSAGES = {
    "strategy.mode": "Invalid 'mode' value. Must be one of: single, loadbalance, fallback, conditional",
    "cache.mode": "Invalid 'cache.mode' value. Must be one of: simple, semantic",
}
_NOT_OFFERED = {
    "prompt_id": "This server has no prompt templates: send messages",
}
_PATTERNS = {
    r"^[\x20-\x7e]*": "Expected printable ASCII characters",
    r"^(metadata|params)": "Expected `metadata.KEY` or `params.KEY`",
    r"^[^.\[\]]+": "Expected a path such as `a`, `a.b`, `a[0].b` or `a[*].b`",
    r"^[A-Za-z0-9!#": "Expected the name of a header",
    r"^[A-Za-z0-9](": "Expected letters, digits and hyphens",
    r"^[A-Za-z0-9_~-]": "Expected letters, digits and `.`, `_`, `~`, `:`, `@`, `-`, not beginning with a dot",
}


def _place(error: str) -> tuple[str, str]:
    """msgspec's message as a path and what was expected there."""
    message, _, path = error.partition(" - at ")
    path = path.rpartition("`$")[2].rstrip("`").removeprefix(".")
    if "matching regex" in message:
        message = next((text for start, text in _PATTERNS.items() if repr(start)[1:-1] in message), message)
    for end, text in _MESSAGES.items():
        if path == end or path.endswith("." + end):
            message = text
    return path, message


def _misshapen(raw: dict[str, Any], path: str) -> list[str]:
    found: list[str] = []
    value: object
    for key, value in raw.items():
        at = _at(path, _short(str(key)))
        if key not in _FIELDS:
            found.append(_detail(at, _NOT_OFFERED.get(key, "Unrecognized key")))
        elif key == "targets" and isinstance(value, list) and value:
            for index, item in enumerate(cast("list[object]", value)):
                place = f"{at}[{index}]"
                if isinstance(item, dict):
                    found += _misshapen(cast("dict[str, Any]", item), place)
                else:
                    found.append(_detail(place, "Expected `object`, a target"))
        else:
            found += _misfit(key, cast(object, value), path)
        if len(found) > _MOST_DETAILS:
            break
    return found


def _misfit(key: str, value: object, path: str) -> list[str]:
    try:
        msgspec.convert({key: value}, dict[str, _FIELDS[key]])
    except msgspec.ValidationError as error:
        # The place of a value in a dict is shown as `$[...]`, the rest of the path follows.
        below, message = _place(str(error).replace("`$[...]", f"`$.{key}"))
        return [_detail(_at(path, below) if below else _at(path, key), message)]
    return []


# --- what is wrong with the sense

# One of these makes a config say something (CFG-31); the last is how a target names its provider by its model.
_SAYS_SOMETHING = (
    "provider",
    "virtual_key",
    "cache",
    "retry",
    "request_timeout",
    "forward_headers",
    "input_guardrails",
    "output_guardrails",
    "before_request_hooks",
    "after_request_hooks",
    "passthrough",
    "default_params",
    "drop_params",
    "override_params",
)
_SAYS_NOTHING = (
    "Invalid configuration. It must have either 'provider' and 'api_key', or 'strategy' and 'targets', or 'cache', "
    "or 'retry', or 'request_timeout', or 'virtual_key', 'forward_headers', 'passthrough', guardrails or params"
)
# What is a target's own and not inherited (INH-02): beside targets it would mean nothing.
_TARGETS_OWN = ("provider", "virtual_key", "api_key", "passthrough", *OPTIONS)
# Which mode a member of a strategy belongs to.
_MODE_OF = {
    "on_status_codes": "fallback",
    "conditions": "conditional",
    "default": "conditional",
    "sticky": "loadbalance",
    "sticky_session": "loadbalance",
}


def _senseless(config: Config, path: str) -> list[str]:
    found: list[str] = []
    if config.cb_config is not None:
        found += _endless(config.cb_config, _at(path, "cb_config"))
    names = config.forward_headers or ()
    if any(name.lower() == "x-portkey-forward-headers" for name in names):
        found.append(_detail(_at(path, "forward_headers"), _FORWARD_ITSELF))
    strategy, targets = config.strategy, config.targets
    if strategy is None and targets is None:
        return found + _senseless_leaf(config, path)
    if strategy is None or targets is None:
        given, wanted = ("targets", "strategy") if strategy is None else ("strategy", "targets")
        return [*found, _detail(path, f"'{given}' needs '{wanted}' beside it")]
    found += [
        _detail(_at(path, name), f"Expected '{name}' in the targets, beside 'targets' it would mean nothing")
        for name in _TARGETS_OWN
        if getattr(config, name) is not None
    ]
    found += _senseless_strategy(strategy, targets, _at(path, "strategy"))
    for index, target in enumerate(targets):
        if len(found) > _MOST_DETAILS:
            break
        found += _senseless(target, f"{_at(path, 'targets')}[{index}]")
    return found


def _senseless_leaf(config: Config, path: str) -> list[str]:
    if all(getattr(config, name) is None for name in _SAYS_SOMETHING):
        return [_detail(path, _SAYS_NOTHING)]
    if config.passthrough and (config.provider is not None or config.virtual_key is not None):
        return [_detail(_at(path, "passthrough"), "Expected no provider or virtual key beside it")]
    if config.provider == "vertex-ai" and (
        config.vertex_region is None
        or (config.vertex_project_id is None and config.vertex_service_account_json is None)
    ):
        expected = "'vertex_region' and one of 'vertex_project_id' and 'vertex_service_account_json'"
        return [_detail(_at(path, "provider"), f"Invalid configuration. vertex-ai needs {expected}")]
    return []


def _senseless_strategy(strategy: Strategy, targets: list[Config], path: str) -> list[str]:
    found = [
        _detail(_at(path, name), f"Expected mode '{mode}' with it")
        for name, mode in _MODE_OF.items()
        if getattr(strategy, name) is not None and strategy.mode != mode
    ]
    if strategy.cb_config is not None:
        found += _endless(strategy.cb_config, _at(path, "cb_config"))
    if strategy.mode == "loadbalance":
        if not any(target.weight for target in targets):
            found.append(_detail(path, "Expected a target with a 'weight' above 0"))
        if strategy.sticky is not None and strategy.sticky_session is not None:
            found.append(_detail(_at(path, "sticky_session"), "Expected one of 'sticky' and 'sticky_session'"))
        if strategy.stuck is not None and not strategy.stuck.hash_fields:
            found.append(_detail(_at(path, "sticky.hash_fields"), "Expected at least one field"))
    if strategy.mode == "conditional":
        names = {target.name for target in targets if target.name is not None}
        if not strategy.conditions:
            found.append(_detail(_at(path, "conditions"), _NO_CONDITIONS))
        for index, condition in enumerate(strategy.conditions or ()):
            at = f"{_at(path, 'conditions')}[{index}]"
            if condition.then not in names:
                found.append(_detail(_at(at, "then"), _NO_TARGET.format(_short(condition.then))))
            found += _unanswerable(condition.query, _at(at, "query"), 1)
        if strategy.default is not None and strategy.default not in names:
            found.append(_detail(_at(path, "default"), _NO_TARGET.format(_short(strategy.default))))
    return found


def _endless(breaker: Breaker, path: str) -> list[str]:
    if breaker.failure_threshold is None and breaker.failure_threshold_percentage is None:
        return [_detail(path, "Expected 'failure_threshold' or 'failure_threshold_percentage'")]
    return []


# --- queries (CND-02, CND-03)

COMPARISONS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$regex")
LOGICAL = ("$and", "$or")


def _unanswerable(query: object, path: str, depth: int) -> list[str]:
    if not isinstance(query, dict):
        return [_detail(path, "Expected `object`, a query")]
    if depth > DEEPEST:
        return [_detail(path, f"Expected queries nested at most {DEEPEST} deep")]
    found: list[str] = []
    for key, value in cast("dict[str, Any]", query).items():
        at = _at(path, _short(key))
        if key in LOGICAL:
            if not isinstance(value, list):
                found.append(_detail(at, "Expected `array` of queries"))
                continue
            for index, item in enumerate(cast("list[object]", value)):
                found += _unanswerable(item, f"{at}[{index}]", depth + 1)
        elif key.startswith("$"):
            found.append(_detail(at, _NO_OPERATOR.format(_short(key))))
        elif not _is_fact(key):
            found.append(_detail(at, "Expected `metadata.KEY`, `params.KEY` or `url.pathname`"))
        elif isinstance(value, dict):
            for operator, operand in cast("dict[str, Any]", value).items():
                found += _inoperable(operator, operand, at)
        if len(found) > _MOST_DETAILS:
            break
    return found


def _is_fact(key: str) -> bool:
    root, _, name = key.partition(".")
    return key == "url.pathname" or (root in {"metadata", "params"} and bool(name) and "." not in name)


def _inoperable(operator: str, operand: object, path: str) -> list[str]:
    at = _at(path, _short(operator))
    if operator not in COMPARISONS:
        return [_detail(at, _NO_OPERATOR.format(_short(operator)))]
    if operator in {"$in", "$nin"} and not isinstance(operand, list):
        return [_detail(at, "Expected `array`")]
    if operator == "$regex" and not (isinstance(operand, str) and len(operand) <= LONGEST_PATTERN):
        return [_detail(at, f"Expected `str` with at most {LONGEST_PATTERN} characters")]
    return []
