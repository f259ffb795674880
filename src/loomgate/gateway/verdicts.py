"""What checks are made of: parameters in, a finding out, and the door through which some reach other servers.

What must live here: values that every check shares. What must not: a check.
"""

from collections.abc import Awaitable, Callable, Container, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from loomgate.errors import ProviderError
from loomgate.gateway.subject import Subject
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Reply, Timeouts

Send = Callable[[HttpCall, Timeouts], Awaitable[Reply]]

Words = Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1000)]
Operator = Literal["any", "all", "none"]

_EXCERPT = 100  # characters of a text that a result shows


class Parameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """What every check takes: ``failOnError`` makes an error a failure (GR-09), ``is_enabled`` false skips the check
    (GR-20)."""

    fail_on_error: bool = False
    is_enabled: bool = msgspec.field(default=True, name="is_enabled")


class Finding(msgspec.Struct, frozen=True):
    """A verdict and why: ``data`` is JSON for the client. ``error`` (its name and message) if the check could not be
    made, ``changed`` the subject with what the check changed about it."""

    verdict: bool
    data: Any = None
    error: tuple[str, str] | None = None
    changed: Subject | None = None

    @classmethod
    def failed(cls, message: str, name: str = "Error", **data: Any) -> "Finding":
        """No verdict: the check could not be made."""
        return cls(False, {"explanation": message, **data}, (name, message))


class Door:
    """How checks reach other servers, whose addresses come from clients' configs: public hosts only, unless the
    operator trusts one (``trusted`` is asked with the URL)."""

    def __init__(self, send: Send, trusted: Callable[[str], bool]) -> None:
        self._send = send
        self._trusted = trusted
        self.kept: dict[str, Any] = {}  # what a check keeps between requests, by its own name

    async def call(
        self, method: str, url: str, headers: dict[str, str], body: bytes, seconds: float, limit: int
    ) -> tuple[int, dict[str, str], bytes]:
        """The answer's status, headers (lower-case names) and the first ``limit`` bytes of its body.

        Raises `ProviderError` when there is none within ``seconds``.
        """
        call = HttpCall(url, headers, body, method=method, public_only=not self._trusted(url))
        timeouts = Timeouts(connect=seconds, first_byte=seconds, idle=seconds, total=seconds)
        async with await self._send(call, timeouts) as reply:
            return reply.status, reply.headers, await reply.read(limit) if limit else b""


# A prepared check; a plain `Finding` where nothing has to be waited for.
Run = Callable[[Subject, Door], Finding | Awaitable[Finding]]


def operated(operator: Operator, wanted: Sequence[str], among: Container[str]) -> tuple[bool, list[str], list[str]]:
    """The verdict of an ``operator``, and which of ``wanted`` were found ``among`` others and which were not."""
    found = [one for one in wanted if one in among]
    missing = [one for one in wanted if one not in among]
    return {"any": bool(found), "all": not missing, "none": not found}[operator], found, missing


def excerpt(text: str) -> str:
    """The beginning of ``text``, for a result."""
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "..."


def site(url: str) -> str:
    """``url`` as results show it: a path or query often holds a token."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def http_url(url: str) -> str:
    """``url`` if it is an absolute one over http or https. Raises `ValueError` otherwise."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or any(char <= " " or char == "\x7f" for char in url):
        raise ValueError("expected an http or https URL")
    return url


def unreachable(error: ProviderError, url: str, **data: Any) -> Finding:
    """The finding for a call that got no answer."""
    name = "TimeoutError" if error.kind == "timeout" else "Error"
    return Finding.failed(f"No answer from {site(url)}: {error.kind}", name, **data)
