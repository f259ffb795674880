"""From what was seen of a call to the record that is kept of it: facts looked up, secrets masked. Pure.

What must live here: what a record holds and what never gets into one (RH-14, RH-15, provider keys). What must not: when
records are made and written (``gateway/meter``), or how they look from outside (``wire/calls``).
"""

import random
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode

import msgspec

from loomgate.errors import ApiError
from loomgate.gateway.call import Answer, Fields, Request
from loomgate.gateway.prices import Prices
from loomgate.gateway.usage import answer_of, units_of, usage_of
from loomgate.wire.calls import Attempt, CallFacts, CallRecord, new_log_id
from loomgate.wire.chat import Usage

MASK = "***"
TAIL = 4096  # bytes of the end of an answer that are looked at, though not kept, when it is too long to keep
_LARGEST_PLAIN = 8 * 1024 * 1024  # bytes that a compressed answer may unpack to for its usage to be looked up
_ANSWERS = frozenset({"chat", "complete", "messages", "embed", "respond"})  # endpoints whose answers name a model

_encode = msgspec.json.Encoder().encode

# Names of headers and query parameters whose values are secrets or may hold one.
_SECRET = re.compile(
    r"auth(?!or(?!iz)|-mode|-type)|key|token(?!s)|secret|cookie|credential|passw|signature|service-account|fingerprint|session|"
    r"custom-host|(?:^|[-_])sig$",
    re.IGNORECASE,
)
_secrets: dict[str, bool] = {}
_MOST_NAMES = 4096


class Seen(NamedTuple):
    """What the pipeline saw of one call. Times are in seconds; ``ended`` is since the epoch, the others are lengths.

    ``request`` may have lost the end of its body, which had ``request_size`` bytes.
    ``body`` is the answer's beginning, ``tail`` its last bytes if it was longer, ``size`` its whole length.
    """

    request: Request
    request_size: int
    answer: Answer
    ended: float
    seconds: float
    first_byte: float | None
    status: int
    body: bytes
    tail: bytes
    size: int
    stream: bool
    usage: Usage | None
    error: str
    attempts: Iterable[tuple[str, int, float, str]]
    trace_id: str
    virtual_key: str
    run_id: str
    thread_id: str


class Made(NamedTuple):
    """A record, and what only spans tell besides: the request's fields (``{}`` if they were not decoded)."""

    record: CallRecord
    fields: Fields
    headers: Mapping[str, str]


def make(seen: Seen, prices: Prices, bodies: int, *, spans: bool = False) -> Made:
    """The record of ``seen``, with at most ``bodies`` bytes of the request and of the answer.

    ``spans``: also what only spans tell is looked up.
    """
    request, answer = seen.request, seen.answer
    naming, endpoint = request.naming, request.endpoint.name
    headers, content_type, coding = _answer_headers(answer.headers)
    body = seen.body + seen.tail if seen.tail else seen.body
    if coding:
        body = _plain(body, coding)
    hit = answer.cache.endswith("HIT")
    usage = seen.usage or answer.usage
    if usage is None and seen.status < 400:
        usage = usage_of(endpoint, content_type, body)
    fields: Fields = {}
    if spans or endpoint in ("speak", "generate_image") or not answer.model:
        fields = _fields(request)
    asked = fields.get("model")
    model = answer.model or (asked if isinstance(asked, str) else "")
    answer_model, answer_id, reasons = answer_of(body) if spans and endpoint in _ANSWERS else ("", "", ())
    cost: float | None = 0.0
    if seen.status < 400 and not hit and answer.provider:
        units = units_of(endpoint, content_type, fields, body, seen.size)
        cost = prices.cost(answer.provider, model, usage, units)
    logged = naming.debug
    sensitive = tuple(name.lower() for name in naming.sensitive)
    sent = request.body if request.chat is None else _encode(_fields(request))
    kept_request = _kept_text(sent, bodies, request.content_type) if logged else None
    kept_answer = _kept_text(body if not seen.tail else seen.body, bodies, content_type) if logged else None
    facts = CallFacts(
        id=new_log_id(seen.ended),
        workspace=request.workspace,
        created_at=seen.ended,
        seconds=seen.seconds,
        first_byte=seen.first_byte,
        endpoint=endpoint,
        status=seen.status,
        method=request.method,
        url=_url(request),
        provider=answer.provider,
        model=model,
        asked_model=asked if isinstance(asked, str) and asked != model else "",
        answer_model=answer_model,
        answer_id=answer_id,
        finish_reasons=reasons,
        stream=seen.stream,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        cached_tokens=usage.cached_tokens if usage else 0,
        cache_creation_tokens=usage.cache_creation_tokens if usage else 0,
        reasoning_tokens=usage.reasoning_tokens if usage else 0,
        cost=cost,
        cache=answer.cache,
        retries=answer.retries,
        path=answer.path,
        attempts=tuple([Attempt(*attempt) for attempt in seen.attempts]),
        error=seen.error,
        trace_id=seen.trace_id,
        span_id=naming.span_id or f"{random.getrandbits(64):016x}",
        span_name=naming.span_name or "",
        parent_span_id=naming.parent_span_id or "",
        metadata=naming.metadata,
        config=naming.config or "",
        virtual_key=seen.virtual_key,
        run_id=seen.run_id,
        thread_id=seen.thread_id,
        logged=logged,
        request_headers=masked_headers(request.headers, sensitive) if logged else {},
        response_headers=masked_headers(headers, sensitive) if logged else {},
        request_type=request.content_type,
        response_type=content_type,
        request_size=seen.request_size or len(sent),
        response_size=seen.size,
    )
    return Made(CallRecord(facts, kept_request, kept_answer), fields, request.headers)


def is_secret(name: str) -> bool:
    """Does a header or query parameter of this name (lower case) hold a secret, as far as its name tells?"""
    found = _secrets.get(name)
    if found is None:
        if len(_secrets) >= _MOST_NAMES:
            _secrets.clear()
        own = name.removeprefix("x-portkey-")
        found = _secrets[name] = _SECRET.search(own) is not None
    return found


def masked_headers(headers: Mapping[str, str], sensitive: Iterable[str] = ()) -> dict[str, str]:
    """``headers`` (names in lower case) with the values of those masked that hold secrets, and of ``sensitive`` ones.

    An inline config may hold keys anywhere, so it is masked whole; the slug of a saved one stays.
    """
    kept = dict(headers)
    for name, value in headers.items():
        if not value.isascii():  # half a character of the client's must not lose the records of everybody
            kept[name] = value.encode("utf-8", "replace").decode()
        # The look-up is the rule: a header comes with every call, and `is_secret` remembers.
        if _secrets.get(name, True) and is_secret(name):
            kept[name] = MASK
    for name in sensitive:
        if name in kept:
            kept[name] = MASK
    if "{" in kept.get("x-portkey-config", ""):
        kept["x-portkey-config"] = MASK
    return kept


def masked_url(url: str) -> str:
    """``url`` with what may be a secret in its query or before its host masked."""
    start, mark, rest = url.partition("?")
    scheme, slashes, place = start.partition("://")
    host, slash, path = place.partition("/")
    if "@" in host:
        start = f"{scheme}{slashes}{MASK}@{host.rpartition('@')[2]}{slash}{path}"
    if not mark:
        return start
    pairs = parse_qsl(rest, keep_blank_values=True)
    return f"{start}?{urlencode([(name, MASK if is_secret(name.lower()) else value) for name, value in pairs])}"


def _url(request: Request) -> str:
    """Where the client sent its request."""
    url = f"http://{request.headers.get('host', 'localhost')}/v1{request.path}"
    if not url.isascii():
        url = url.encode("utf-8", "replace").decode()
    return masked_url(f"{url}?{request.query}") if request.query else url


def _answer_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[dict[str, str], str, str]:
    """The headers as text; the content type without parameters; how the content is compressed ("": not)."""
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    content_type = found.get("content-type", "application/json").partition(";")[0].strip().lower()
    coding = found.get("content-encoding", "").strip().lower()
    return found, content_type, "" if coding == "identity" else coding


def _plain(body: bytes, coding: str) -> bytes:
    """A compressed body unpacked as far as it goes; nothing of codings that the standard library does not have."""
    if coding not in ("gzip", "x-gzip", "deflate"):
        return b""
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, _LARGEST_PLAIN)
    except zlib.error:
        return b""


def _kept_text(body: bytes, bodies: int, content_type: str) -> bytes | None:
    """What is kept of ``body``: nothing of sounds, images and forms, whose bytes tell a reader nothing."""
    if (
        not body
        or not bodies
        or content_type.startswith(("audio/", "image/", "video/", "multipart/", "application/oct"))
    ):
        return None
    return body if len(body) <= bodies else body[:bodies]


def _fields(request: Request) -> Fields:
    try:
        return request.fields
    except ApiError:
        return {}
