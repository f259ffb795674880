"""What a model endpoint's failure means in our words: HTTP status, Retry-After, and text without secrets.

What must live here: facts about failures that every dialect shares. What must not: a vendor's error codes (those
belong to its dialect) and the decision to try again (``gateway/``).
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from loomgate import clock
from loomgate.errors import ProviderError, ProviderErrorKind

# RFC 9110, and 529 ("site is overloaded") which several vendors borrowed. Anything absent goes by its hundred.
_KINDS: dict[int, ProviderErrorKind] = {
    401: "auth",
    402: "quota",
    403: "auth",
    404: "model_not_found",
    408: "timeout",
    409: "overloaded",  # vendors answer this for a lock they could not take in time
    412: "quota",  # a gateway's word for a budget that is used up (GATEWAY GERR-10)
    425: "overloaded",
    429: "rate_limit",
    498: "overloaded",  # groq: no capacity in the flex tier
    503: "overloaded",
    504: "timeout",
    524: "timeout",
    529: "overloaded",
}

# Keys and tokens as vendors write them, wherever they turn up in a message; the exact key of a call is masked as well.
_KEY_LIKE = re.compile(r"\b(sk|gsk|pplx|fw|xai|r8|hf|key)([-_])[A-Za-z0-9_\-]{12,}")
_GOOGLE = re.compile(r"\b(AIza|ya29\.|AQ\.)[A-Za-z0-9_.\-]{20,}")
_SHORTEST = 4  # a placeholder such as "k" is no secret, and would take every k out of the text
_BEARER = re.compile(r"(?i)\bbearer\s+[A-Za-z0-9._~+/\-]{8,}=*")


def status_kind(status: int) -> ProviderErrorKind:
    """The error kind of an HTTP status that is not a success (an unexpected one, such as 302, is ``malformed``)."""
    known = _KINDS.get(status)
    if known is not None:
        return known
    if 400 <= status < 500:
        return "invalid"
    return "server" if 500 <= status < 600 else "malformed"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds the endpoint asks us to wait, or None.

    ``headers`` has lower-case names. In order: ``retry-after-ms`` and ``x-ms-retry-after-ms`` (milliseconds),
    ``retry-after`` (seconds, or an HTTP date as in RFC 9110 10.2.3). What cannot be read counts as absent.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        seconds = _number(headers.get(name))
        if seconds is not None:
            return seconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    import email.utils

    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - clock.now())


def error_answer(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    read: Callable[[dict[str, Any], int, float | None], ProviderError],
) -> ProviderError:
    """What an answer with an error status means. ``headers`` has lower-case names; ``body`` may be anything.

    ``read`` gets the body if it is a JSON object, the status, and the seconds to wait if the endpoint said so. What
    is not the vendor's own answer (a redirect, a page of a proxy or a balancer in between) goes by its status.
    """
    if 300 <= status < 400:
        said = f"The endpoint answered HTTP {status}, a redirect: set base_url to where it points."
        return ProviderError("malformed", said, status=status)
    found = None
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = msgspec.json.decode(body)
    if isinstance(found, list) and found:  # Google's compatible endpoint wraps the object in a list
        found = cast(list[Any], found)[0]
    wait = retry_after(headers)
    if isinstance(found, dict):
        return read(cast(dict[str, Any], found), status, wait)
    said = body[:300].decode("utf-8", "replace").strip()
    if said.startswith("<"):
        said = "an HTML page"  # no use to anyone
    message = f"The endpoint answered HTTP {status}" + (f": {masked(said)}" if said else ".")
    return ProviderError(status_kind(status), message, status=status, retry_after=wait)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def masked(text: str, *secrets: str | None) -> str:
    """``text`` with each of ``secrets`` and everything that looks like an API key replaced by ``***``."""
    for secret in secrets:
        if secret and len(secret) >= _SHORTEST:
            text = text.replace(secret, "***")
    return _BEARER.sub("Bearer ***", _KEY_LIKE.sub(r"\1\2***", _GOOGLE.sub(r"\1***", text)))
