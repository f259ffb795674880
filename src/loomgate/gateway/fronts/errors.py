"""Errors of endpoints, in the shape that the client reads.

What must live here: error bodies, from any vendor's shape into OpenAI's or Anthropic's (GATEWAY section 8). What must
not: statuses (they stay as they are), and what an error means for a retry (``providers/failure``).
"""

from collections.abc import Callable
from typing import Any, cast

import msgspec

from loomgate.errors import ApiError
from loomgate.providers.failure import masked
from loomgate.wire.endpoints import Endpoint

Json = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_LONGEST = 4000  # characters of an endpoint's body that are repeated


class _Read(msgspec.Struct):
    """What an error object says."""

    message: str
    type: Any = None
    param: Any = None
    code: Any = None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    return _encode(value).decode()


def _inner(found: Json) -> Json:
    inner: Any = found.get("error", found)
    return cast(Json, inner) if isinstance(inner, dict) else {"message": inner}


def _openai(found: Json) -> _Read | None:
    inner = _inner(found)
    said = _text(
        inner.get("message")
        or inner.get("detail")
        or found.get("message")
        or found.get("detail")
        or found.get("errors")
    )
    return _Read(said, inner.get("type"), inner.get("param"), inner.get("code")) if said else None


def _anthropic(found: Json) -> _Read | None:
    inner = _inner(found)
    said = _text(inner.get("message"))
    return _Read(said, inner.get("type")) if said else None


def _gemini(found: Json) -> _Read | None:
    inner = _inner(found)
    said = _text(inner.get("message"))
    return _Read(said, inner.get("status"), None, inner.get("code")) if said else None


def _vertex(found: Json) -> _Read | None:
    read = _gemini(found)
    return read and _Read(read.message, read.type, None, read.type)


def _message(found: Json) -> _Read | None:
    said = _text(found.get("message") or found.get("Message"))
    return _Read(said) if said else None


_READERS: dict[str, Callable[[Json], _Read | None]] = {
    "anthropic": _anthropic,
    "bedrock": _message,
    "cohere": _message,
    "gemini": _gemini,
    "vertex-ai": _vertex,
}


def _read(body: bytes, dialect: str) -> tuple[_Read | None, Any]:
    """What ``body`` says, and the body as JSON; what is no JSON becomes some (GATEWAY GERR-09)."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = {"html-message": body[:_LONGEST].decode("utf-8", "replace")}
    first: Any = found
    if isinstance(found, list) and found:  # Google wraps it in a list
        first = cast(list[Any], found)[0]
    if not isinstance(first, dict):
        return None, cast(Any, found)
    return _READERS.get(dialect, _openai)(cast(Json, first)), cast(Any, found)


def _said(provider: str, read: _Read | None, found: Any) -> str:
    if read is not None:
        return f"{provider} error: {masked(read.message)}"
    return f"Invalid response received from {provider}: {masked(_encode(found).decode()[:_LONGEST])}"


def error_body(provider: str, status: int, upstream_body: bytes, dialect: str) -> Json:
    """An endpoint's error in OpenAI's shape (GATEWAY GERR-01, GERR-02, GERR-09).

    ``provider`` is its slug, ``status`` its HTTP status, ``dialect`` that of its row: it knows where the error's
    parts are. A dialect unknown here counts as OpenAI's. Keys in the message are masked.
    """
    del status  # it is the answer's own
    read, found = _read(upstream_body, dialect)
    message = _said(provider, read, found)
    type, param, code = (read.type, read.param, read.code) if read else (None, None, None)
    return {"error": {"message": message, "type": type, "param": param, "code": code}, "provider": provider}


# --- for clients that speak Anthropic's format ---------------------------------------------------------------------

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Our kinds of failure and OpenAI's types, as Anthropic's.
_NAMED = {
    "invalid": "invalid_request_error",
    "auth": "authentication_error",
    "quota": "billing_error",
    "insufficient_quota": "billing_error",
    "model_not_found": "not_found_error",
    "rate_limit": "rate_limit_error",
    "rate_limit_exceeded": "rate_limit_error",
    "overloaded": "overloaded_error",
    "timeout": "timeout_error",
}


def anthropic_type(name: str) -> str:
    """``name`` (a type of Anthropic's or OpenAI's, or a kind of `ProviderError`) as a type of Anthropic's."""
    return name if name in _TYPES.values() else _NAMED.get(name, "api_error")


def messages_error(status: int, message: str) -> Json:
    """An error in Anthropic's shape, of the type that goes with ``status``."""
    type = _TYPES.get(status) or ("invalid_request_error" if 400 <= status < 500 else "api_error")
    return {"type": "error", "error": {"type": type, "message": message}}


# Endpoints whose clients read Anthropic's errors.
ANTHROPIC = frozenset({"messages", "count_tokens"})


def messages_error_body(provider: str, status: int, upstream_body: bytes, dialect: str) -> Json:
    """An endpoint's error in Anthropic's shape: the words as in `error_body`, the type by the status."""
    read, found = _read(upstream_body, dialect)
    return {**messages_error(status, _said(provider, read, found)), "provider": provider}


# --- errors of our own -----------------------------------------------------------------------------------------------


def refusal_body(error: ApiError, endpoint: Endpoint, provider: str = "") -> bytes:
    """``error`` as a client of ``endpoint`` reads it, in JSON: the object that its SDK shows, OpenAI's or Anthropic's,
    and the members that Portkey's clients read (GATEWAY VAL-06, VAL-21)."""
    if endpoint.name in ANTHROPIC:
        made: Json = messages_error(error.status, error.message)
    else:
        made = {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}
    made |= {"status": "failure", "message": error.message}
    if provider:
        made["provider"] = provider
    if error.details:
        made["errors"] = error.details
    return _encode(made)
