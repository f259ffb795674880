"""Handlers of the log of calls and of prices, Portkey's ``/logs`` and ``/model-configs`` (docs/gateway/logs.md)."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from loomgate import clock
from loomgate.errors import ApiError, bad_request
from loomgate.gateway.prices import Prices, pricing_object
from loomgate.gateway.record import masked_headers, masked_url
from loomgate.http import query
from loomgate.http.body import decode
from loomgate.http.call import Answer, Call
from loomgate.store.ledger import CallPage, CallQuery
from loomgate.wire.calls import CallFacts, CallRecord, log_object, new_log_id

_FILTERS = ("limit", "after", "since", "until", "status", "is_success", "provider", "model", "trace_id")
_STEP, _LOOKED = 100, 5_000  # records that a page by `is_success` is looked for among: at once, and in all
_MOST = 1_000  # logs in one request
_STATUS = re.compile(r"[1-9]\d\d")


async def page(call: Call) -> Answer:
    """``GET /logs``: newest first, without bodies."""
    given = dict(query.pairs(call.query))
    for name in given:
        if name not in _FILTERS:
            raise bad_request(
                f"Unknown parameter: '{name[:100]}'. Expected some of: {', '.join(_FILTERS)}.",
                name,
                "unknown_parameter",
            )
    wanted = CallQuery(
        limit=query.page_of({name: value for name, value in given.items() if name == "limit"}).limit,
        after=given.get("after") or None,
        since=_time(given, "since"),
        until=_time(given, "until"),
        status=_status(given),
        provider=given.get("provider"),
        model=given.get("model"),
        trace_id=given.get("trace_id"),
    )
    found = await _page(call, wanted, _success(given))
    data = [log_object(CallRecord(facts)) for facts in found.records]
    return _json({"object": "list", "data": data, "has_more": found.next is not None, "next": found.next})


async def _page(call: Call, wanted: CallQuery, success: bool | None) -> CallPage:
    """The records that are ``wanted``, those of ``success`` alone if it is given: no column of the store has it."""
    if success is None:
        return await call.engine.store.ledger.page(call.workspace, wanted)
    kept: list[CallFacts] = []
    after = wanted.after
    for _ in range(_LOOKED // _STEP):
        step = msgspec.structs.replace(wanted, after=after, limit=_STEP)
        found = await call.engine.store.ledger.page(call.workspace, step)
        for facts in found.records:
            if len(kept) == wanted.limit:
                return CallPage(kept, kept[-1].id)
            if facts.failed is not success:
                kept.append(facts)
        after = found.next
        if after is None:
            break
    return CallPage(kept, after)


async def get(call: Call) -> Answer:
    """``GET /logs/{log_id}``."""
    found = await call.engine.store.ledger.get(call.workspace, call.path["log_id"])
    if found is None:
        raise ApiError(404, f"No log found with id '{call.path['log_id'][:100]}'.")
    return _json(log_object(found))


class _Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    url: str
    body: dict[str, Any]
    method: str = "POST"
    headers: dict[str, str] = {}
    provider: str = ""


class _Response(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    body: dict[str, Any]
    status: Annotated[int, Meta(ge=100, le=599)] = 200
    headers: dict[str, str] = {}
    response_time: Annotated[int, Meta(ge=0)] = 0


class _Log(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    request: _Request
    response: _Response
    metadata: dict[str, str] = {}


class _Logs(msgspec.Struct):
    logs: list[_Log]


async def insert(call: Call) -> Answer:
    """``POST /logs``: one log or a list of them, of calls that were made elsewhere."""
    body = call.body.strip()
    logs = decode(b'{"logs":%b}' % body, _Logs).logs if body.startswith(b"[") else [decode(body, _Log)]
    if len(logs) > _MOST:
        raise bad_request(f"Too many logs: expected at most {_MOST}, but got {len(logs)}.", code="invalid_value")
    records = [_record(log, call) for log in logs]
    if call.settings.log_calls:
        await call.engine.store.ledger.write(records)
    return _json({"status": "success", "ids": [record.facts.id for record in records]})


async def pricing(call: Call) -> Answer:
    """``GET /model-configs/pricing/{provider}/{model}``."""
    found = Prices(call.settings.prices).find(call.path["provider"], call.path["model"])
    if found is None:
        return Answer(b'{"error":"Model not found"}', 404)
    return _json(pricing_object(found))


def _record(log: _Log, call: Call) -> CallRecord:
    now = clock.now()
    model, metadata = log.request.body.get("model"), dict(log.metadata)
    request, response = msgspec.json.encode(log.request.body), msgspec.json.encode(log.response.body)
    most = call.settings.log_body_bytes
    facts = CallFacts(
        id=new_log_id(now),
        workspace=call.workspace,
        created_at=now,
        seconds=log.response.response_time / 1000,
        endpoint="log",
        status=log.response.status,
        method=log.request.method.upper(),
        url=masked_url(log.request.url),
        provider=log.request.provider,
        model=model if isinstance(model, str) else "",
        trace_id=metadata.pop("trace_id", ""),
        span_id=metadata.pop("span_id", ""),
        span_name=metadata.pop("span_name", ""),
        parent_span_id=metadata.pop("parent_span_id", ""),
        metadata=metadata,
        request_headers=masked_headers(log.request.headers),
        response_headers=masked_headers(log.response.headers),
        request_type="application/json",
        response_type="application/json",
        request_size=len(request),
        response_size=len(response),
    )
    return CallRecord(facts, request[:most] if most else None, response[:most] if most else None)


def _time(given: dict[str, str], name: str) -> float | None:
    """A time in seconds since the epoch, or as RFC 3339 writes it; one without a zone is in UTC."""
    text = given.get(name)
    if text is None:
        return None
    try:
        found = float(text) if re.fullmatch(r"\d{1,12}(\.\d+)?", text) else _instant(text)
    except (ValueError, OverflowError):
        found = -1.0
    if found < 0:
        raise bad_request(
            f"Invalid '{name}': expected seconds since the epoch or a time such as 2026-11-20T12:00:00Z, but got "
            f"'{text[:50]}'.",
            name,
            "invalid_value",
        )
    return found


def _instant(text: str) -> float:
    found = datetime.fromisoformat(text)
    return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).timestamp()


def _status(given: dict[str, str]) -> int | None:
    text = given.get("status")
    if text is None:
        return None
    if not _STATUS.fullmatch(text):
        raise bad_request(
            f"Invalid 'status': expected an HTTP status such as 200, but got '{text[:50]}'.", "status", "invalid_value"
        )
    return int(text)


def _success(given: dict[str, str]) -> bool | None:
    text = given.get("is_success")
    if text not in (None, "true", "false"):
        raise bad_request(
            f"Invalid 'is_success': expected true or false, but got '{text[:50]}'.", "is_success", "invalid_value"
        )
    return None if text is None else text == "true"


def _json(value: object) -> Answer:
    return Answer(msgspec.json.encode(value))
