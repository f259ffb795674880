"""How much of the whole API a workspace and an API key may have: requests a minute, and requests at a time.

What must live here: who counts as what, the headers that tell of it, and the 429. What must not: counting
(``gateway/counters``), and what a virtual key may spend (``gateway/limits``).

There is a `Quota` only if the operator limits anything: without one a request costs one look at ``None``. With one it
surrounds the application: a request is under way until its answer, or its stream, has ended.
"""

import math
import secrets
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loomgate.errors import ApiError
from loomgate.gateway.counters import Counters, Place, Rate, Stand, Verdict
from loomgate.http.auth import Caller
from loomgate.http.protocol import WHOLE
from loomgate.settings import Settings

_VISIT = "loomgate.visit"  # where a request's scope has its visit
_MINUTE = 60
_BEGUN = frozenset({"http.response.start", WHOLE, "websocket.accept", "websocket.http.response.start"})
_NAMES = tuple(f"x-ratelimit-{word}-requests" for word in ("limit", "remaining", "reset"))
_OURS = frozenset(name.encode() for name in _NAMES)


class _Visit:
    """A request under way: what it has taken, and what its answer tells."""

    __slots__ = ("headers", "places", "who")

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.who = ""
        self.headers: list[tuple[bytes, bytes]] = []


class Quota:
    """The door for requests of known callers. ``workspace`` and ``key`` limit each of these: (requests a minute,
    requests at a time), 0 for no limit."""

    def __init__(self, counters: Counters, workspace: tuple[int, int], key: tuple[int, int]) -> None:
        self._counters = counters
        self._workspace = workspace
        self._key = key

    async def surround(self, application: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Have ``application`` answer a request, and see to it that the request is under way no longer then."""
        visit = scope[_VISIT] = _Visit()

        async def told(message: Message) -> None:
            if visit.headers and message["type"] in _BEGUN:
                # What an endpoint says of its own limits is not what this client has left.
                kept = [pair for pair in message.get("headers", ()) if pair[0] not in _OURS]
                message = {**message, "headers": kept + visit.headers}
            await send(message)

        try:
            await application(scope, receive, told)
        finally:
            if visit.places:
                self._counters.leave(visit.places, visit.who)

    async def enter(self, scope: Scope, caller: Caller) -> None:
        """Let the request of ``scope`` in, which is ``caller``'s. Raises a 429 `ApiError` (BEHAVIOUR ERR-50)."""
        visit: _Visit = scope[_VISIT]
        rates: list[Rate] = []
        places: list[Place] = []
        for kind, id, (most, at_once) in (
            ("workspace", caller.workspace, self._workspace),
            ("key", caller.key_id, self._key),
        ):
            if id is None:
                continue
            if most:
                rates.append(Rate(f"{kind}:{id}", _MINUTE, most))
            if at_once:
                places.append(Place(f"{kind}:{id}", at_once))
        if not rates and not places:
            return
        if places:
            visit.who = secrets.token_hex(8)
        verdict = await self._counters.enter(rates, places, visit.who)
        at = verdict.refused
        if at is None:
            visit.places = places
            visit.headers = [(name.encode(), value.encode()) for name, value in _told(rates, verdict.stands).items()]
            return
        if at < len(rates):
            raise _too_many(rates[at], verdict)
        raise _too_many_at_once(places[at - len(rates)], rates, verdict)


def quota_of(settings: Settings, counters: Counters) -> Quota | None:
    """The door that ``settings`` ask for, if they limit anything."""
    workspace = (settings.workspace_requests_per_minute, settings.workspace_concurrency)
    key = (settings.key_requests_per_minute, settings.key_concurrency)
    return Quota(counters, workspace, key) if any(workspace + key) else None


def _told(rates: Sequence[Rate], stands: Sequence[Stand]) -> dict[str, str]:
    """OpenAI's three headers, of the rate that has the least left."""
    if not rates:
        return {}
    left = [
        max(0, math.floor(rate.value - stand.used(rate.seconds))) for rate, stand in zip(rates, stands, strict=True)
    ]
    at = left.index(min(left))
    reset = stands[at].wait(rates[at].seconds, 0)
    return dict(zip(_NAMES, (str(rates[at].value), str(left[at]), _span(reset)), strict=True))


def _span(seconds: float) -> str:
    """A time as OpenAI's headers have it: ``120ms``, ``8.64s``, ``1m30s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 100) / 100, 60)
    return (f"{minutes:.0f}m" if minutes else "") + f"{rest:.4g}s"


def _name(name: str) -> str:
    kind, _, id = name.partition(":")
    return f"workspace '{id}'" if kind == "workspace" else "this API key"


def _too_many(rate: Rate, verdict: Verdict) -> ApiError:
    stand = verdict.stands[verdict.refused or 0]
    seconds = max(1, math.ceil(stand.wait(rate.seconds, rate.room)))
    values = (str(rate.value), "0", _span(stand.wait(rate.seconds, 0)))
    return _refusal(
        f"Rate limit reached for {_name(rate.name)}: {rate.value} requests a minute. Please try again in {seconds} s.",
        seconds,
        dict(zip(_NAMES, values, strict=True)),
    )


def _too_many_at_once(place: Place, rates: Sequence[Rate], verdict: Verdict) -> ApiError:
    told = _told(rates, verdict.stands)
    return _refusal(
        f"Rate limit reached for {_name(place.name)}: {place.most} requests at a time. Please try again when one of"
        " them has ended.",
        1,
        # Without a rate these headers are about the limit that was met.
        told or dict(zip(_NAMES, (str(place.most), "0", "1s"), strict=True)),
    )


def _refusal(message: str, seconds: int, told: dict[str, str]) -> ApiError:
    headers = {"retry-after": str(seconds), **told}
    return ApiError(429, message, type="requests", code="rate_limit_exceeded", headers=headers)
