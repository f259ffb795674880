"""Who is calling, and which endpoint the caller wants model calls to go to.

What must live here: the forms in which a key and an upstream are named (OpenAI's, Portkey's, Azure's), and whom a
server without keys trusts. What must not: routing itself (``gateway/``), or plain secrets in anything that is kept.

A key arrives as ``Authorization: Bearer KEY``, as ``x-portkey-api-key: KEY``, or on ``/openai`` as ``api-key: KEY``.
Beside ``x-portkey-api-key`` the bearer token is the client's own provider key (GATEWAY AUTH-02), unless it is the same
key again or the placeholder that Portkey's SDK sends.
"""

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from loomgate import clock
from loomgate.errors import ApiError, bad_request
from loomgate.http.refusal import shortened
from loomgate.settings.provider_data import masked
from loomgate.wire.chat import Upstream

if TYPE_CHECKING:
    from loomgate.settings import Settings
    from loomgate.store import Store

Headers = Mapping[bytes, bytes]

_KEY_SECONDS = 2.0  # how long a key that was looked up counts without another look: revoking takes as long
_EXIST_SECONDS = 1.0  # how long "no key was created yet" counts
_MOST_KEYS = 10_000

_PORTKEY = b"x-portkey-"
# Portkey's Python SDK gives the OpenAI client below it this in place of a key.
_PLACEHOLDER = "OPENAI_API_KEY"
# Headers that choose or change where a call goes, or what happens to it on the way. They are refused, since a caller
# relies on them; what remains are traces, metadata and facts about the client, which change no answer.
_UNSUPPORTED = frozenset(
    b"x-portkey-" + name
    for name in (
        b"config",
        b"custom-host",
        b"forward-headers",
        b"request-timeout",
        b"default-input-guardrails",
        b"default-output-guardrails",
        b"input-guardrails",
        b"output-guardrails",
        b"openai-organization",
        b"openai-project",
        b"provider-model",
        b"workers-ai-account-id",
        b"huggingface-base-url",
        b"fireworks-account-id",
        b"mistral-fim-completion",
        b"snowflake-account",
    )
)
_UNSUPPORTED_PREFIXES = tuple(
    b"x-portkey-" + name
    for name in (b"azure-", b"aws-", b"amz-", b"amzn-", b"vertex-", b"stability-", b"oracle-", b"anthropic-")
)

# What a proxy adds: behind one, the peer's address says nothing about who is calling.
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip")


class Caller(msgspec.Struct, frozen=True):
    """Who is calling: the workspace, where its runs' model calls go, and the client's own provider key if it sent one.

    ``secret`` belongs to ``upstream`` of kind ``sealed``; it is sealed and kept only when a run is created.
    ``keyless``: let in without a key. ``admin``: may use the admin routes of its workspace. ``key_id``: its API key.
    """

    workspace: str
    upstream: Upstream = Upstream()
    secret: str | None = None
    keyless: bool = False
    admin: bool = False
    key_id: str | None = None

    def __repr__(self) -> str:
        return f"Caller(workspace={self.workspace!r}, upstream={self.upstream!r})"


# Without keys, whoever is on this machine may do what the command line lets them do anyway.
_NO_CALLER = Caller("default", keyless=True, admin=True)


class Auth:
    """Looks keys up, with a small memory: nothing is hashed or read for a key that was seen a moment ago.

    ``vendors`` are the names of the catalogue's vendors that have an address of their own.
    """

    def __init__(self, store: "Store", settings: "Settings", vendors: frozenset[str]) -> None:
        self._store = store
        self._settings = settings
        self._vendors = vendors
        self._known: dict[str, tuple[Caller, float]] = {}
        self._keys_exist = False
        self._looked = float("-inf")

    async def caller(self, scope: Mapping[str, Any], headers: Headers, *, azure: bool, upstream: bool = True) -> Caller:
        """Who sent a request with ``headers`` (lower-case names); the upstream they name is looked at if ``upstream``.

        Raises 401 `ApiError` (ERR-10, ERR-11), 403 for what a server without keys does not trust, and 400 for an
        upstream that cannot be used.
        """
        portkey = any(name.startswith(_PORTKEY) for name in headers)
        bearer = _bearer(headers)
        key = _text(headers, b"x-portkey-api-key") if portkey else None
        if key is None and azure:
            key = _text(headers, b"api-key")
        own = bearer if key is not None and bearer not in (key, _PLACEHOLDER) else None
        if key is None:
            key = bearer
        if await self._any_keys():
            caller = await self._by_key(key)
        else:
            _trust_the_machine(scope, headers)
            caller = _NO_CALLER
            if portkey and b"x-portkey-api-key" not in headers and bearer != _PLACEHOLDER:
                own = bearer  # no key of ours is needed, so it can only be the provider's
        return await self._with_upstream(caller, headers, own) if portkey and upstream else caller

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
        now = clock.monotonic()
        found = self._known.get(key)
        if found is not None and now < found[1]:
            return found[0]
        holder = await self._store.keys.holder(key)
        if holder is None:
            self._known.pop(key, None)
            raise _unauthorized(
                f"Incorrect API key provided: {masked(key)}. The operator of this server makes keys with "
                "`loomgate keys create`.",
                "invalid_api_key",
            )
        if len(self._known) >= _MOST_KEYS:
            self._known.clear()
        caller = Caller(holder.workspace, admin=holder.role == "admin", key_id=holder.id)
        self._known[key] = (caller, now + _KEY_SECONDS)
        return caller

    # Upstreams

    async def _with_upstream(self, caller: Caller, headers: Headers, own: str | None) -> Caller:
        """``caller`` with the upstream that its Portkey headers name."""
        for name in headers:
            if name.startswith(_PORTKEY) and (name in _UNSUPPORTED or name.startswith(_UNSUPPORTED_PREFIXES)):
                raise bad_request(
                    f"The header '{name.decode('latin-1')}' is not supported by this server. Name the provider with "
                    "x-portkey-virtual-key or x-portkey-provider.",
                    code="unsupported_header",
                )
        slug, provider = _text(headers, b"x-portkey-virtual-key"), _text(headers, b"x-portkey-provider")
        if slug is not None and provider is not None:
            raise bad_request(
                "Expected one of the headers x-portkey-virtual-key and x-portkey-provider, but got both.",
                code="invalid_value",
            )
        if slug is not None:
            if not await self._is_virtual_key(caller.workspace, slug):
                raise _unknown("x-portkey-virtual-key", slug, "a virtual key of this workspace")
            return msgspec.structs.replace(caller, upstream=Upstream("virtual_key", slug))
        if provider is None:
            return caller
        if provider.startswith("@"):
            slug = provider[1:]
            if await self._is_virtual_key(caller.workspace, slug):
                return msgspec.structs.replace(caller, upstream=Upstream("virtual_key", slug))
            if slug in self._settings.providers:
                return msgspec.structs.replace(caller, upstream=Upstream("provider", slug))
            raise _unknown("x-portkey-provider", provider, "a virtual key of this workspace or a configured provider")
        if own is not None:
            if provider not in self._settings.providers and provider not in self._vendors:
                raise _unknown("x-portkey-provider", provider, "a known provider")
            return msgspec.structs.replace(caller, upstream=Upstream("sealed", provider), secret=own)
        if provider not in self._settings.providers:
            raise _unknown(
                "x-portkey-provider",
                provider,
                "a provider that this server is configured for, or a provider's own key in the Authorization header",
            )
        return msgspec.structs.replace(caller, upstream=Upstream("provider", provider))

    async def _is_virtual_key(self, workspace: str, slug: str) -> bool:
        declared = self._settings.virtual_keys.get(slug)
        if declared is not None and declared.workspace == workspace:
            return True
        stored = await self._store.virtual_keys.get(workspace, slug)
        return stored is not None and not stored.expired()


def _unauthorized(message: str, code: str | None = None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})


def _unknown(header: str, value: str, expected: str) -> ApiError:
    return bad_request(
        f"Invalid header '{header}': '{shortened(value)}' is not known here. Expected {expected}.", code="invalid_value"
    )


def _text(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return value.decode("latin-1").strip() or None if value is not None else None


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


def _trust_the_machine(scope: Mapping[str, Any], headers: Headers) -> None:
    """Without keys only programs on this machine are let in.

    The Host header is checked since a web page can give its own name this machine's address (DNS rebinding), the
    Origin since a page may send requests whose answers it cannot read.
    """
    peer = scope.get("client")
    why = None
    if peer is None or not is_loopback(peer[0]):
        why = "requests from other machines"
    elif any(name in headers for name in _FORWARDED):
        why = "requests through a proxy"
    elif not is_loopback(_host_of(headers.get(b"host", b"").decode("latin-1"))):
        why = "requests whose Host header does not name this machine"
    elif (origin := headers.get(b"origin")) is not None:
        if not is_loopback(_host_of(origin.decode("latin-1").partition("://")[2])):
            why = "requests from web pages of other machines"
    elif headers.get(b"sec-fetch-site") == b"cross-site":
        why = "requests from web pages of other machines"
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
