"""Who is calling.

What must live here: the forms in which a key is sent (OpenAI's, Portkey's, Azure's, Anthropic's), and whom a server
without keys trusts. What must not: which way a model call goes (``naming`` and ``gateway/``).

A key arrives as ``Authorization: Bearer KEY``, as ``x-portkey-api-key: KEY``, on ``/openai`` as ``api-key: KEY``, or as
``x-api-key: KEY``, which Anthropic's SDK sends. Beside ``x-portkey-api-key`` one of the others is the client's own
provider key (GATEWAY AUTH-02, AUTH-06), unless it is the same key again or the placeholder that Portkey's SDK sends.
"""

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from loomgate import clock
from loomgate.errors import ApiError, bad_request
from loomgate.http.naming import NOTHING, PREFIX, naming_of
from loomgate.http.refusal import shortened
from loomgate.settings.provider_data import masked
from loomgate.store.recent import Recent
from loomgate.wire.policy import Naming

if TYPE_CHECKING:
    from loomgate.store import Store

Headers = Mapping[bytes, bytes]

_KEY_SECONDS = 1.0  # how long a key that was looked up counts without another look: revoking takes as long
_EXIST_SECONDS = 1.0  # how long "no key was created yet" counts

# Portkey's Python SDK gives the OpenAI client below it this in place of a key.
_PLACEHOLDER = "OPENAI_API_KEY"
# What a proxy adds: behind one, the peer's address says nothing about who is calling.
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")


class Caller(msgspec.Struct, frozen=True):
    """Who is calling: the workspace, and what the request says about the way of its model calls.

    ``keyless``: let in without a key. ``admin``: may use the admin routes of its workspace. ``key_id``: its API key.
    """

    workspace: str
    naming: Naming = NOTHING
    keyless: bool = False
    admin: bool = False
    key_id: str | None = None


Known = tuple[str, Caller]  # a key, and what was found for it

# Without keys, whoever is on this machine may do what the command line lets them do anyway.
_NO_CALLER = Caller("default", keyless=True, admin=True)


class Auth:
    """Looks keys up, with a small memory: nothing is hashed or read for a key that was seen a moment ago. A key that
    was seen lately is let in while the database is away."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self._known = Recent(self._look_up, fresh=_KEY_SECONDS)
        self._keys_exist = False
        self._looked = float("-inf")

    async def caller(self, scope: Mapping[str, Any], headers: Headers, *, azure: bool, upstream: bool = True) -> Caller:
        """Who sent a request with ``headers`` (lower-case names); without ``upstream``, what they name is ignored.

        Raises 401 `ApiError` (ERR-10, ERR-11), 403 for what a server without keys does not trust, and 400 for headers
        that cannot be read.
        """
        bearer, key = _given(headers, azure=azure)
        own = bearer if key is not None and bearer not in (key, _PLACEHOLDER) else None
        if key is None:
            key = bearer
        if self._keys_exist or await self._any_keys():
            caller = (self._known.known(key) if key else None) or await self._by_key(key)
        else:
            _trust_the_machine(scope, headers)
            caller = _NO_CALLER
            portkey = any(name.startswith(PREFIX) for name in headers)
            if portkey and b"x-portkey-api-key" not in headers and bearer != _PLACEHOLDER:
                own = bearer  # no key of ours is needed, so it can only be the provider's
        naming = naming_of(headers, own) if upstream else NOTHING
        if naming is NOTHING:
            return caller
        return Caller(caller.workspace, naming, caller.keyless, caller.admin, caller.key_id)

    def known(self, headers: Headers) -> "Known | None":
        """The key that a request with ``headers`` brings, if it was looked up a moment ago and is good."""
        bearer, key = _given(headers, azure=False)
        key = bearer if key is None else key
        caller = None if key is None else self._known.known(key)
        return None if key is None or caller is None else (key, caller)

    def holds(self, known: "Known | None") -> bool:
        """Whether that is still so."""
        return known is not None and self._known.known(known[0]) is known[1]

    async def keys_exist(self) -> bool:
        """Was a key ever created? Until then the server answers this machine only."""
        return await self._any_keys()

    async def _any_keys(self) -> bool:
        if self._keys_exist:
            return True  # keys are revoked, never removed
        now = clock.monotonic()
        if now - self._looked >= _EXIST_SECONDS:
            self._keys_exist = await self._store.keys.exist()
            self._looked = now
        return self._keys_exist

    async def _by_key(self, key: str | None) -> Caller:
        if not key:
            raise _unauthorized(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        caller = await self._known.get(key)
        if caller is None:
            raise _unauthorized(
                f"Incorrect API key provided: {masked(key)}. The operator of this server makes keys with "
                "`loomgate keys create`.",
                "invalid_api_key",
            )
        return caller

    async def _look_up(self, key: str) -> Caller | None:
        holder = await self._store.keys.holder(key)
        if holder is None:
            return None
        return Caller(holder.workspace, admin=holder.role == "admin", key_id=holder.id)


def _unauthorized(message: str, code: str | None = None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})


def _text(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return value.decode("latin-1").strip() or None if value is not None else None


def _given(headers: Headers, *, azure: bool) -> tuple[str | None, str | None]:
    """The key in the place of OpenAI's or Anthropic's, and the one in that of Portkey's or Azure's."""
    key = _text(headers, b"x-portkey-api-key")
    if key is None and azure:
        key = _text(headers, b"api-key")
    return _bearer(headers) or _text(headers, b"x-api-key"), key


def _bearer(headers: Headers) -> str | None:
    value = headers.get(b"authorization")
    if value is None:
        return None
    scheme, _, token = value.decode("latin-1").strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


# --- a server without keys -------------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Does ``host`` (a name or an address without port) mean this machine?"""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _host_of(netloc: str) -> str:
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def whose_machine(scope: Mapping[str, Any], headers: Headers) -> str | None:
    """``None`` for a request of a program on this machine, else what kind of request it is, in the plural.

    The Host header is checked since a web page can give its own name this machine's address (DNS rebinding), the
    Origin since a page may send requests whose answers it cannot read.
    """
    peer = scope.get("client")
    if peer is None or not is_loopback(peer[0]):
        return "requests from other machines"
    if any(name in headers for name in _FORWARDED):
        return "requests through a proxy"
    if not is_loopback(_host_of(headers.get(b"host", b"").decode("latin-1"))):
        return "requests whose Host header does not name this machine"
    origin = headers.get(b"origin")
    foreign = origin is not None and not is_loopback(_host_of(origin.decode("latin-1").partition("://")[2]))
    if foreign or (origin is None and headers.get(b"sec-fetch-site") == b"cross-site"):
        return "requests from web pages of other machines"
    return None


def _trust_the_machine(scope: Mapping[str, Any], headers: Headers) -> None:
    """Without keys only programs on this machine are let in."""
    why = whose_machine(scope, headers)
    if why is not None:
        raise ApiError(
            403,
            f"This server has no API key yet and does not answer {why}. Create a key with "
            "`loomgate keys create --name NAME` and send it as a bearer token.",
            code="api_key_required",
        )


def check_content_type(headers: Headers) -> None:
    """Without keys a body has to say that it is JSON: a web page cannot say so without being asked for its Origin."""
    given = headers.get(b"content-type", b"").decode("latin-1")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise bad_request(
            f"Invalid header 'Content-Type': expected application/json, but got '{shortened(given)}'.",
            code="invalid_value",
        )
