"""What a wire dialect is: values to HTTP request bytes, and answer bytes to values. No I/O.

What must live here: the protocol that dialects fulfil and the plain values around it. What must not: a vendor.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import msgspec.structs

from loomgate.errors import ProviderError
from loomgate.providers import azure
from loomgate.providers.vendor import Vendor
from loomgate.wire.chat import Chat, Chunk
from loomgate.wire.endpoints import EndpointName


class HttpCall(msgspec.Struct, frozen=True):
    """A request ready to be sent. Never log ``headers``: they hold the key.

    ``public_only``: an address that is not of the public internet is refused when the connection is made.
    """

    url: str
    headers: dict[str, str]
    body: bytes = b""
    method: str = "POST"
    public_only: bool = False

    def __repr__(self) -> str:
        return f"HttpCall({self.method} {self.url!r}, body=<{len(self.body)} bytes>)"


class Auth(Protocol):
    """Proves who is calling when a key in a header does not suffice: a step between the dialect and the transport,
    which sees the finished request. Endpoints without one pay nothing for it."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may show."""
        ...

    def __call__(self, call: HttpCall) -> HttpCall:
        """``call`` with what proves it, as of now: do it again for every attempt."""
        ...


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint to call: the vendor's row, where it is, and with which key (never shown by ``repr``) or `Auth`.

    ``project`` and ``region`` for the vendors that have such a thing (`Vendor.takes`), ``options`` are the provider
    data of GATEWAY CFG-27 under their config names. ``public_only``: a client chose the address, so each `HttpCall`
    has to have it. ``bucket``: the only one that may be read and written, if the key was lent with it.
    """

    vendor: Vendor
    base_url: str
    api_key: str | None = None
    auth: Auth | None = None
    project: str | None = None
    region: str | None = None
    drop: frozenset[str] = frozenset()
    headers: dict[str, str] = {}
    options: Mapping[str, Any] = {}
    public_only: bool = False
    bucket: str | None = None

    @property
    def url(self) -> str:
        """The address of the chat of a vendor whose addresses do not depend on the model."""
        return self.endpoint_url("chat")

    def endpoint_url(self, endpoint: EndpointName, model: str | None = None, user: str | None = None) -> str:
        """Where ``endpoint`` is, for a ``model``; a base that already ends in a path's version does not get it twice.

        Raises `ProviderError` ``invalid`` for a placeholder of the row that nothing fills, ``model_not_found`` for a
        model whose name would lead elsewhere. The endpoint must be one of the row's.
        """
        vendor = self.vendor
        path = vendor.endpoints[endpoint]
        for option, paths in vendor.switched.items():
            if endpoint in paths and str(self.options.get(option)).lower() == "true":
                path = paths[endpoint]
        if vendor.shared_prefix and self.base_url != vendor.base_url:
            path = path.removeprefix(vendor.shared_prefix)
        return self.addressed(path, endpoint, model, user)

    def addressed(self, path: str, endpoint: EndpointName, model: str | None = None, user: str | None = None) -> str:
        """The address of ``path``, which may have placeholders as a row's has. Raises as `endpoint_url`."""
        base = self.base_url
        if "{" in base or "{" in path:
            base, path = self._filled(base, model, user), self._filled(path, model, user)
        addressing = _ADDRESSING.get(self.vendor.name)
        if addressing is not None:
            return addressing(base, path, endpoint, model, self.options)
        return _joined(base, path)

    def own_headers(self) -> dict[str, str]:
        """The headers of every request: the row's, the provider data that travel as headers, the key, the target's."""
        vendor = self.vendor
        made = dict(vendor.headers)
        for name, option in vendor.option_headers.items():
            if (value := self.options.get(option)) is not None:
                made[name] = str(value)
        made.update(self.proof())
        made.update(self.headers)
        return made

    def proof(self) -> dict[str, str]:
        """The header with the key, if there is one and it goes into a header."""
        vendor = self.vendor
        if not self.api_key or vendor.auth in ("none", "oci"):
            return {}
        if vendor.dialect == "azure-ai" and azure.speaks_anthropic(self.base_url):
            return {"x-api-key": self.api_key}  # GATEWAY PV-03
        return {vendor.key_header: vendor.key_prefix + self.api_key}

    def __repr__(self) -> str:
        return f"Target(vendor={self.vendor.name!r}, base_url={self.base_url!r})"

    @property
    def secrets(self) -> tuple[str | None, ...]:
        """What no message may show."""
        return (self.api_key,) if self.auth is None else (self.api_key, *self.auth.secrets)

    def _filled(self, template: str, model: str | None, user: str | None) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name == "model":
                return quote_model(model)
            if name == "base_model":
                return quote_model(model and model.partition(":")[0])
            given = user if name == "user" else self.region if name == "region" else self.options.get(name)
            given = given or _DEFAULTS.get(name)
            if not given:
                raise ProviderError("invalid", f"The provider '{self.vendor.name}' needs {name}, which is not given.")
            if not _PART.fullmatch(str(given)):
                raise ProviderError("invalid", f"Invalid '{name}': expected letters, digits, '.', '_' and '-'.")
            return str(given)

        return _PLACEHOLDER.sub(value, template)


def base_of(vendor: Vendor, options: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The address that the provider data give in place of the row's, and whether it may be any: then it counts as a
    custom host, and a stored key must not go there on a client's word. None without such data.

    Raises `ProviderError` ``invalid`` for data that make no address.
    """
    if vendor.address is not None and (given := options.get(vendor.address)):
        return str(given), True
    return (azure.foundry_base(options), False) if vendor.dialect == "azure-ai" else (None, False)


@lru_cache(maxsize=1024)
def _joined(base: str, path: str) -> str:
    """``path`` below ``base``, whose end may be the version that the path begins with."""
    base = base.rstrip("/")
    version = path[: path.find("/", 1)]
    return base + (path.removeprefix(version) if version[:2] == "/v" and base.endswith(version) else path)


_PLACEHOLDER = re.compile(r"\{(\w+)\}")
# What a client may put into a host name or a path: nothing that would end it there.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_DEFAULTS = {"oracle_api_version": "20231130", "region": "us-east-1"}  # GATEWAY TR-22
_ADDRESSING = {"azure-openai": azure.openai_url, "azure-ai": azure.foundry_url}


def quote_model(model: str | None) -> str:
    """A model's name as a part of a path. Raises `ProviderError` for none, and for one that would lead elsewhere."""
    if not model:
        raise ProviderError("invalid", "Model is required")  # GATEWAY GERR-07
    if any(part in ("", ".", "..") for part in model.split("/")):
        raise ProviderError("model_not_found", f"The model '{model[:200]}' does not exist.")
    return quote(model, safe="/@:._-~")


_DROPPABLE = frozenset(field.name for field in msgspec.structs.fields(Chat) if field.default is None)


def undropped(call: Chat, target: Target) -> Chat:
    """``call`` without the fields that the vendor's row or the target drops, for a dialect with names of its own."""
    names = (target.vendor.drop | target.drop) & _DROPPABLE
    return msgspec.structs.replace(call, **dict.fromkeys(names)) if names else call


class Decoder(Protocol):
    """The reading side of one answer with a success status. After its `Finish`, anything more is ignored.

    ``id`` and ``model``: what the endpoint calls the answer and itself, if it does, from the first chunk on.
    Both methods give their chunks one by one, so that those before an error come out before it is raised: what
    the caller has seen must not depend on how the bytes were split.
    """

    id: str | None
    model: str | None

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that ``data`` completes. Raises `ProviderError` for an error within the stream or nonsense."""
        ...

    def end(self) -> Iterator[Chunk]:
        """The body is over: the last chunks. Raises `ProviderError` ``cut`` if the answer was not complete."""
        ...


class Dialect(Protocol):
    """A family of endpoints that speak the same JSON."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``, streamed or not as it says."""
        ...

    def decoder(self) -> Decoder:
        """A fresh decoder for one answer."""
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an answer with an error status means. ``headers`` has lower-case names."""
        ...
