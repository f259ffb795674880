"""The checks that look at the request: its model, its metadata, its endpoint (GATEWAY GR-22).

What must live here: a verdict on a request. What must not: which checks there are (``checks.py``).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from loomgate.gateway.subject import Subject
from loomgate.gateway.verdicts import Door, Finding, Operator, Parameters, Run, Words, operated


class ModelWhitelist(Parameters, frozen=True):
    """``models`` under the names that requests use."""

    models: Words
    not_: bool = msgspec.field(default=False, name="not")


def prepare_model_whitelist(wanted: ModelWhitelist) -> Run:
    """The check ``modelwhitelist``."""

    def run(subject: Subject, _: Door) -> Finding:
        model = subject.asked_model
        return _allowed(model, wanted.models, wanted.not_) if model else Finding.failed("The request names no model")

    return run


def _allowed(model: str, models: Sequence[str], inverted: bool, **more: Any) -> Finding:
    listed = model in models
    verdict = listed != inverted
    said = f'Model "{model}" is {"" if verdict else "not "}allowed.'
    data = {"verdict": verdict, "not": inverted, "explanation": said, "requestedModel": model, **more}
    return Finding(verdict, data)


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Models for everybody, and by a metadata key and its value."""

    defaults: list[str] = []
    metadata: dict[str, dict[str, list[str]]] = {}


class ModelRules(Parameters, frozen=True):
    """``rules``: ``{defaults: [models], metadata: {key: {value: [models]}}}``."""

    rules: Rules
    not_: bool = msgspec.field(default=False, name="not")


def prepare_model_rules(wanted: ModelRules) -> Run:
    """The check ``modelRules``."""

    def run(subject: Subject, _: Door) -> Finding:
        model = subject.asked_model
        if not model:
            return Finding.failed("The request names no model")
        models: list[str] = []
        matched: list[str] = []
        for key, by_value in wanted.rules.metadata.items():
            value = subject.metadata.get(key)
            if value is not None and value in by_value:
                matched.append(f"{key}:{value}")
                models += by_value[value]
        models = models or wanted.rules.defaults
        if not models:
            return Finding.failed("The rules allow no model for this request")
        return _allowed(model, models, wanted.not_, matchedRules=matched)

    return run


def _types(given: list[str] | str) -> list[str]:
    items = given.split(",") if isinstance(given, str) else given
    return [item.strip() for item in items if item.strip()]


class AllowedRequestTypes(Parameters, frozen=True):
    """Endpoints such as ``chatComplete``, as an array or with commas between them."""

    allowed_types: list[str] | str = ""
    blocked_types: list[str] | str = ""


def prepare_allowed_request_types(wanted: AllowedRequestTypes) -> Run:
    """The check ``allowedRequestTypes``."""
    given = _types(wanted.allowed_types), _types(wanted.blocked_types)
    if both := set(given[0]) & set(given[1]):
        raise ValueError(f"both allowedTypes and blockedTypes have {', '.join(sorted(both))}")

    def run(subject: Subject, _: Door) -> Finding:
        allowed = given[0] or _types(subject.metadata.get("supported_endpoints", ""))
        blocked = given[1] or _types(subject.metadata.get("blocked_endpoints", ""))
        if both := set(allowed) & set(blocked):
            return Finding.failed(f"Types both allowed and blocked: {', '.join(sorted(both))}")
        kind = subject.request_type
        verdict = kind not in blocked and (not allowed or kind in allowed)
        data = {
            "currentRequestType": kind,
            "allowedTypes": allowed or ["all"],
            "blockedTypes": blocked,
            "verdict": verdict,
            "explanation": f'Request type "{kind}" is {"" if verdict else "not "}allowed.',
        }
        return Finding(verdict, data)

    return run


class RequiredMetadataKeys(Parameters, frozen=True):
    """``metadataKeys`` of the request's metadata, whatever their values."""

    metadata_keys: Words
    operator: Operator = "all"


def prepare_required_metadata_keys(wanted: RequiredMetadataKeys) -> Run:
    """The check ``requiredMetadataKeys``."""

    def run(subject: Subject, _: Door) -> Finding:
        verdict, found, missing = operated(wanted.operator, wanted.metadata_keys, subject.metadata)
        data = {
            "explanation": f"{len(found)} of {len(wanted.metadata_keys)} keys found; '{wanted.operator}' was wanted.",
            "missing_metadata_keys": missing,
            "found_metadata_keys": found,
            "operator": wanted.operator,
        }
        return Finding(verdict, data)

    return run
