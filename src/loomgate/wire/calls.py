"""The record of one call through the gateway, and how the log shows it (gateway.openapi.json, LogObject).

What must live here: values and their JSON. What must not: when a record is made (``gateway/meter``), or SQL.
"""

import random
import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

_STREAM = ("text/event-stream", "application/vnd.amazon.eventstream")


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """One try at an endpoint: ``status`` 0 means that no answer came; ``seconds`` until it was known."""

    provider: str
    status: int
    seconds: float
    host: str = ""


class CallFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a call besides its bodies. No secret is in it: header values are masked, keys left out.

    ``created_at`` is when it ended (seconds since the epoch), ``seconds`` how long it took, ``first_byte`` how long its
    answer took to begin (``None``: not known). ``model`` was called, ``asked_model`` is what the client wrote,
    ``answer_model`` what the endpoint calls itself. ``cost`` is in USD, ``None`` when no price is known. ``path`` is
    RSP-02's; ``cache`` RSP-04's. ``status`` is what the client saw: that of a stream which broke later stays 200, and
    ``error`` says what broke it. ``virtual_key`` is a slug, the reference and not the key.
    """

    id: str = ""
    workspace: str = ""
    created_at: float
    seconds: float
    endpoint: str
    status: int = 0
    method: str = "POST"
    url: str = ""
    first_byte: float | None = None
    provider: str = ""
    model: str = ""
    asked_model: str = ""
    answer_model: str = ""
    answer_id: str = ""
    finish_reasons: tuple[str, ...] = ()
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_creation_tokens: int = 0
    reasoning_tokens: int = 0
    cost: float | None = None
    cache: str = "DISABLED"
    retries: int = 0
    path: str = "config"
    attempts: tuple[Attempt, ...] = ()
    error: str = ""
    trace_id: str = ""
    span_id: str = ""
    span_name: str = ""
    parent_span_id: str = ""
    metadata: dict[str, str] = {}
    config: str = ""
    virtual_key: str = ""
    run_id: str = ""
    thread_id: str = ""
    logged: bool = True  # false: the client asked for no log of its request and answer (RH-15)
    request_headers: dict[str, str] = {}
    response_headers: dict[str, str] = {}
    request_type: str = ""
    response_type: str = ""
    request_size: int = 0
    response_size: int = 0

    @property
    def failed(self) -> bool:
        """Whether the client got no whole answer: an error's status, or a stream that broke after its 200."""
        return self.status >= 400 or bool(self.error)


class CallRecord(msgspec.Struct, frozen=True):
    """A call for the log: its facts, and its bodies as far as they are kept (``None``: not)."""

    facts: CallFacts
    request: bytes | None = None
    response: bytes | None = None


# --- ids -------------------------------------------------------------------------------------------------------------

_PATIENCE = 10_000 << 12  # ten seconds, as ids have them
_last = 0  # milliseconds and a counter of 12 bits, as the newest id has them


def new_log_id(seconds: float) -> str:
    """A version 7 UUID for a call that ended ``seconds`` after the epoch; each is greater than the one before it.

    So the order of ids is the order in which records were made, and a time is a place among them (`first_log_id`). A
    clock that was set back by more than `_PATIENCE` is followed all the same.
    """
    global _last  # noqa: PLW0603 - the one counter of the process
    stamp = int(seconds * 1000) << 12
    if 0 <= _last - stamp < _PATIENCE:
        stamp = _last + 1
    _last = stamp
    value = (stamp >> 12) << 80 | 0x7 << 76 | (stamp & 0xFFF) << 64 | 0b10 << 62 | random.getrandbits(62)
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def first_log_id(seconds: float) -> str:
    """The smallest id that a call which ended ``seconds`` after the epoch, or later, can have."""
    milliseconds = min(max(0, int(-(-seconds * 1000 // 1))), (1 << 48) - 1)
    return str(uuid.UUID(int=milliseconds << 80))


# --- as the log shows it ---------------------------------------------------------------------------------------------


def rfc3339(seconds: float) -> str:
    """``seconds`` since the epoch, such as 2026-11-20T12:00:00.123Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def log_object(record: CallRecord) -> dict[str, Any]:
    """``record`` as LogObject, for encoding; ``loomgate`` has what that shape has no member for.

    A body that is a whole JSON object stands as it is, another one as ``{"text": ..., "truncated": ...}``.
    """
    facts = record.facts
    request: dict[str, Any] = {
        "url": facts.url,
        "method": facts.method,
        "headers": facts.request_headers,
        "portkeyHeaders": {k: v for k, v in facts.request_headers.items() if k.startswith("x-portkey-")},
    }
    response: dict[str, Any] = {
        "status": facts.status,
        "headers": facts.response_headers,
        "responseTime": round(facts.seconds * 1000),
        "lastUsedOptionJsonPath": facts.path,
    }
    if record.request is not None:
        request["body"] = _body(record.request, facts.request_type, facts.request_size)
    if record.response is not None:
        response["body"] = _body(record.response, facts.response_type, facts.response_size)
    return {
        "_id": facts.id,
        "request": request,
        "response": response,
        "organisation_id": facts.workspace,
        "created_at": rfc3339(facts.created_at),
        "metrics": _metrics(facts),
        "loomgate": {
            "endpoint": facts.endpoint,
            "asked_model": facts.asked_model,
            "time_to_first_byte": None if facts.first_byte is None else round(facts.first_byte * 1000, 1),
            "cached_tokens": facts.cached_tokens,
            "cache_creation_tokens": facts.cache_creation_tokens,
            "reasoning_tokens": facts.reasoning_tokens,
            "attempts": facts.attempts,
            "error": facts.error or None,
            "metadata": facts.metadata,
            "run_id": facts.run_id or None,
            "thread_id": facts.thread_id or None,
        },
    }


def _metrics(facts: CallFacts) -> dict[str, Any]:
    status = facts.cache
    return {
        "id": facts.id,
        "organisation_id": facts.workspace,
        "workspace_slug": facts.workspace,
        "created_at": rfc3339(facts.created_at),
        "is_success": not facts.failed,
        "ai_org": facts.provider,
        "ai_model": facts.model,
        "req_units": facts.prompt_tokens,
        "res_units": facts.completion_tokens,
        "total_units": facts.prompt_tokens + facts.completion_tokens,
        # LogObject's cost is in cents; 0 where no price is known, as there.
        "cost": 0 if facts.cost is None else facts.cost * 100,
        "cost_currency": "USD",
        "request_url": facts.url,
        "request_method": facts.method,
        "response_status_code": facts.status,
        "response_time": round(facts.seconds * 1000),
        "is_proxy_call": facts.endpoint == "proxy",
        "cache_status": status,
        "cache_type": None if status == "DISABLED" else "semantic" if status.startswith("SEMANTIC") else "simple",
        "stream_mode": int(facts.stream),
        "retry_success_count": max(0, facts.retries),
        "trace_id": facts.trace_id,
        "span_id": facts.span_id,
        "span_name": facts.span_name,
        "parent_span_id": facts.parent_span_id,
        "config": facts.config,
        "virtual_key": facts.virtual_key,
        "metadata.key": list(facts.metadata),
        "metadata.value": list(facts.metadata.values()),
    }


def _body(body: bytes, content_type: str, size: int) -> Any:
    whole = len(body) >= size
    if whole and content_type not in _STREAM:
        try:
            if isinstance(msgspec.json.decode(body), dict):
                return msgspec.Raw(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return {"text": body.decode("utf-8", "replace"), "truncated": not whole}
