"""The checks that ask other servers: webhook, log, URLs, and the keys for tokens (GATEWAY GR-22).

What must live here: what is sent, and what an answer means. What must not: sockets (``providers/transport.py``).
Every call is bounded in time and size; the addresses are clients' words, so `Door` decides which may be reached.
"""

import asyncio
import re
import socket
from typing import Annotated, Any, Literal, cast
from urllib.parse import urljoin, urlsplit

import msgspec
from msgspec import Meta

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.gateway import tokens_signed
from loomgate.gateway.subject import Subject
from loomgate.gateway.verdicts import (
    Door,
    Finding,
    Parameters,
    Run,
    excerpt,
    http_url,
    site,
    unreachable,
)

_SECONDS = 3.0
_LONGEST_ANSWER = 8 * 1024 * 1024  # bytes of a webhook's, which may hold the whole body again
_MOST_URLS = 50
_URLS_AT_ONCE = 10
_URLS_SECONDS = 10.0
_REDIRECTS = 3
_URL = re.compile(r"https?://\S+")
_LONGEST_KEYS = 512 * 1024
_KEY_SETS = 100
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# What frames the request is ours: a wrong length would make the next answer on that connection somebody else's.
_NOT_THEIRS = frozenset(
    "connection content-length content-type expect host keep-alive te trailer transfer-encoding upgrade".split()
)
_LOG_ANSWER = 4096  # bytes read of it, so that the connection can be used again
_FAILED_SECONDS = 5.0  # for which a set of keys that could not be fetched is left alone
_LOOK_AGAIN = 30.0  # seconds before a set of keys is fetched again for a key that it does not have

Milliseconds = Annotated[int, Meta(ge=1, le=60_000)]


# --- webhook and log ---


class Webhook(Parameters, frozen=True):
    """``webhookURL`` answers ``{verdict, data, transformedData}``; ``headers`` as an object or the text of one."""

    webhook_url: str = msgspec.field(name="webhookURL")
    headers: dict[str, str] | str = ""
    timeout: Milliseconds = 3000


class Log(Parameters, frozen=True):
    """``logURL`` is told; ``headers`` as an object or the text of one."""

    log_url: str = msgspec.field(name="logURL")
    headers: dict[str, str] | str = ""
    timeout: Milliseconds = 3000


class _Transformed(msgspec.Struct):
    json: dict[str, Any] | None = None


class _Both(msgspec.Struct):
    request: _Transformed | None = None
    response: _Transformed | None = None


class _Told(msgspec.Struct):
    """What a webhook answers."""

    verdict: bool
    data: Any = None
    transformed_data: _Both | None = msgspec.field(default=None, name="transformedData")


_read_told = msgspec.json.Decoder(_Told).decode


def _headers(given: dict[str, str] | str) -> dict[str, str]:
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given, type=dict[str, str]) if given.strip() else {}
        except msgspec.DecodeError as error:
            raise ValueError(f"headers: {error}") from None
    for name, value in given.items():
        if not _HEADER.fullmatch(name) or any(char in value for char in "\r\n\0"):
            raise ValueError(f"headers: {name[:50]!r} is not the name of a header, or its value has a line break")
        if name.lower() in _NOT_THEIRS:
            raise ValueError(f"headers: {name!r} is not yours to set")
    return {"Content-Type": "application/json", **given}


def told_of(subject: Subject) -> bytes:
    """What a webhook or log is sent. The client's headers are left out: its keys are among them."""
    output = subject.side == "output"
    asked = msgspec.structs.replace(subject, side="input") if output else subject
    return msgspec.json.encode(
        {
            "request": {
                "json": subject.fields,
                "text": asked.text,
                "isStreamingRequest": subject.fields.get("stream") is True,
                "isTransformed": subject.transformed and not output,
            },
            "response": {
                "json": subject.answer if output else {},
                "text": subject.text if output else "",
                "statusCode": 200 if output else None,
                "isTransformed": subject.transformed and output,
            },
            "provider": subject.provider,
            "requestType": subject.request_type,
            "metadata": dict(subject.metadata),
            "eventType": "afterRequestHook" if output else "beforeRequestHook",
        }
    )


def prepare_webhook(wanted: Webhook) -> Run:
    """The check ``webhook``."""
    url, headers = http_url(wanted.webhook_url), _headers(wanted.headers)
    shown: dict[str, Any] = {"webhookUrl": site(url), "requestContext": {"timeout": wanted.timeout}}

    async def run(subject: Subject, door: Door) -> Finding:
        try:
            status, _, body = await door.call(
                "POST", url, headers, told_of(subject), wanted.timeout / 1000, _LONGEST_ANSWER
            )
        except ProviderError as error:
            return unreachable(error, url, **shown)
        if not 200 <= status < 300:
            return Finding.failed(f"The webhook answered with HTTP status {status}", "HttpError", **shown)
        try:
            told = _read_told(body)
        except (msgspec.DecodeError, UnicodeError) as error:
            return Finding.failed(f"The webhook's answer is not what was expected: {error}", **shown)
        said = f"The webhook {'let it pass' if told.verdict else 'refused it'}."
        data = {"verdict": told.verdict, "explanation": said, "responseData": told.data, **shown}
        return Finding(told.verdict, data, changed=_transformed(subject, told.transformed_data))

    return run


def _transformed(subject: Subject, both: _Both | None) -> Subject | None:
    """What the webhook made of the side that is being looked at; the other side is not its to change."""
    if both is None:
        return None
    mine = both.request if subject.side == "input" else both.response
    if mine is None or mine.json is None:
        return None
    return subject.with_body(mine.json)


def prepare_log(wanted: Log) -> Run:
    """The check ``log``: passes when the log has taken it."""
    url, headers = http_url(wanted.log_url), _headers(wanted.headers)

    async def run(subject: Subject, door: Door) -> Finding:
        try:
            status, _, _ = await door.call("POST", url, headers, told_of(subject), wanted.timeout / 1000, _LOG_ANSWER)
        except ProviderError as error:
            return unreachable(error, url)
        if not 200 <= status < 300:
            return Finding.failed(f"The log answered with HTTP status {status}", "HttpError")
        return Finding(True, {"message": f"Told {site(url)}"})

    return run


# --- URLs ---


class ValidUrls(Parameters, frozen=True):
    """``onlyDNS``: it is enough that the name is known; otherwise the URL has to answer with success."""

    only_dns: bool = msgspec.field(default=False, name="onlyDNS")
    not_: bool = msgspec.field(default=False, name="not")


def prepare_valid_urls(wanted: ValidUrls) -> Run:
    """The check ``validUrls``."""

    async def run(subject: Subject, door: Door) -> Finding:
        text = subject.text
        urls = list(dict.fromkeys(_url_alone(found) for found in _URL.findall(text)))
        if len(urls) > _MOST_URLS:
            return Finding.failed(f"The text has {len(urls)} URLs; {_MOST_URLS} at most are looked at")
        places = asyncio.Semaphore(_URLS_AT_ONCE)

        async def one(url: str) -> bool:
            async with places:
                return await (_is_known(url) if wanted.only_dns else _answers(url, door))

        try:
            async with asyncio.timeout(_URLS_SECONDS):
                fine = await asyncio.gather(*(one(url) for url in urls))
        except TimeoutError:
            return Finding.failed(f"The URLs were not all looked at within {_URLS_SECONDS:g} seconds", "TimeoutError")
        verdict = all(fine) != wanted.not_
        data = {
            "validURLs": [url for url, good in zip(urls, fine, strict=True) if good],
            "invalidURLs": [url for url, good in zip(urls, fine, strict=True) if not good],
            "not": wanted.not_,
            "verdict": verdict,
            "validationMethod": "DNS" if wanted.only_dns else "HTTP",
            "explanation": f"{sum(fine)} of {len(urls)} URLs are valid.",
            "textExcerpt": excerpt(text),
        }
        return Finding(verdict, data)

    return run


def _url_alone(found: str) -> str:
    """``found`` without what belongs to the sentence or the Markdown around it."""
    found = re.split(r"[<>\"`]", found)[0]
    while found:
        last = found[-1]
        if last in ".,;:!?'*_|\\" or (last in ")]}" and found.count(last) > found.count("([{"[")]}".index(last)])):
            found = found[:-1]
        else:
            break
    return found


async def _is_known(url: str) -> bool:
    try:
        host = urlsplit(url).hostname
        if not host:
            return False
        async with asyncio.timeout(_SECONDS):
            await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError, TimeoutError):  # UnicodeError, of a bad name, is a ValueError
        return False
    return True


async def _answers(url: str, door: Door) -> bool:
    """Whether ``url`` answers 2xx, after a few redirects; asked with GET if it does not know HEAD."""
    method: Literal["HEAD", "GET"] = "HEAD"
    try:
        async with asyncio.timeout(_SECONDS * 2):
            for _ in range(_REDIRECTS + 2):
                status, headers, _ = await door.call(method, http_url(url), {}, b"", _SECONDS, 0)
                if status in (405, 501) and method == "HEAD":
                    method = "GET"
                elif 300 <= status < 400 and "location" in headers:
                    url = urljoin(url, headers["location"])
                else:
                    return 200 <= status < 300
    except (ProviderError, ValueError, TimeoutError):
        pass
    return False


# --- tokens ---


class Jwt(Parameters, frozen=True):
    """A token in the header ``headerKey``, signed with a key of the set at ``jwksUri``.

    ``cacheMaxAge`` and ``clockTolerance`` in seconds; ``maxTokenAge`` as well, or as ``1d``, ``12h``, ``30m``, ``45s``.
    """

    jwks_uri: str
    header_key: Annotated[str, Meta(min_length=1)] = "Authorization"
    cache_max_age: Annotated[int, Meta(ge=1)] = 86_400
    clock_tolerance: Annotated[int, Meta(ge=0, le=86_400)] = 5
    max_token_age: Annotated[int, Meta(ge=1)] | str = "1d"  # noqa: S105 - a time
    algorithms: tuple[tokens_signed.Algorithm, ...] = ()


class _KeySet(msgspec.Struct):
    """A set of keys, and when it was fetched; the lock that lets one task at a time do so; when and why that failed."""

    lock: asyncio.Lock
    fetched: float = 0.0
    failed: float = 0.0
    why: str = ""
    keys: dict[str, dict[str, Any]] | None = None


def prepare_jwt(wanted: Jwt) -> Run:
    """The check ``jwt``."""
    url, age = http_url(wanted.jwks_uri), tokens_signed.seconds(wanted.max_token_age)
    allowed = frozenset(wanted.algorithms) or tokens_signed.ALGORITHMS

    async def run(subject: Subject, door: Door) -> Finding:
        given = subject.headers.get(wanted.header_key.lower(), "")
        if not given:
            return Finding(False, {"verdict": False, "explanation": "The request has no such header"})
        text = re.sub(r"^bearer\s+", "", given.strip(), flags=re.IGNORECASE)
        try:
            token = tokens_signed.read(text, allowed)
        except ValueError as error:
            return _refused(str(error))
        try:
            key = await _key(door, url, token.key_id, wanted.cache_max_age)
        except ValueError as error:
            return Finding.failed(f"The keys could not be fetched: {error}")
        if key is None:
            return Finding(
                False, {"verdict": False, "explanation": "The set of keys does not have the key of this token"}
            )
        try:
            tokens_signed.verify(token, key, now=clock.now(), tolerance=wanted.clock_tolerance, longest=age)
        except ValueError as error:
            return _refused(str(error))
        return Finding(True, {"verdict": True, "explanation": "The token is valid."})

    return run


def _refused(why: str) -> Finding:
    return Finding(False, {"verdict": False, "explanation": f"The token was refused: {why}"})


async def _key(door: Door, url: str, id: str, longest: int) -> dict[str, Any] | None:
    """The key ``id`` of the set at ``url``, which is fetched when it is old, or again when it does not have the key.

    Raises `ValueError` when there is no set.
    """
    sets = cast(dict[str, _KeySet], door.kept.setdefault("jwks", {}))
    held = sets.get(url)
    if held is None:
        while len(sets) >= _KEY_SETS:
            del sets[next(iter(sets))]
        held = sets[url] = _KeySet(asyncio.Lock())
    for wait in (float(longest), min(_LOOK_AGAIN, longest)):
        if held.keys is None or clock.now() - held.fetched >= wait:
            async with held.lock:
                if held.keys is None or clock.now() - held.fetched >= wait:
                    await _fetch(held, door, url)
        if held.keys is not None and id in held.keys:
            return held.keys[id]
    return None


async def _fetch(held: _KeySet, door: Door, url: str) -> None:
    """Fetch ``held`` anew. Raises `ValueError`, at once for all who waited meanwhile and for a few seconds after."""
    if held.why and clock.now() - held.failed < _FAILED_SECONDS:
        raise ValueError(held.why)
    try:
        held.keys, held.fetched, held.why = await _fetched(door, url), clock.now(), ""
    except (ProviderError, ValueError) as error:
        held.why = str(error) if isinstance(error, ValueError) else f"no answer from {site(url)}: {error.kind}"
        held.failed = clock.now()
        raise ValueError(held.why) from None


class _Keys(msgspec.Struct):
    keys: list[dict[str, Any]]


async def _fetched(door: Door, url: str) -> dict[str, dict[str, Any]]:
    status, _, body = await door.call("GET", url, {"Accept": "application/json"}, b"", _SECONDS, _LONGEST_KEYS)
    if status != 200:
        raise ValueError(f"HTTP status {status} from {site(url)}")
    try:
        found = msgspec.json.decode(body, type=_Keys).keys
    except (msgspec.DecodeError, UnicodeError):
        raise ValueError(f"{site(url)} did not answer with a set of keys") from None
    return {key["kid"]: key for key in found if isinstance(key.get("kid"), str)}
