"""What a wire dialect is: values to HTTP request bytes, and answer bytes to values. No I/O.

What must live here: the protocol that dialects fulfil and the plain values around it. What must not: a vendor.
"""

from collections.abc import Iterator, Mapping
from typing import Protocol

import msgspec
import msgspec.structs

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import Vendor
from loomgate.wire.chat import Chat, Chunk


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

    ``project`` and ``region`` for the vendors that have such a thing (`Vendor.takes`).
    """

    vendor: Vendor
    base_url: str
    api_key: str | None = None
    auth: Auth | None = None
    project: str | None = None
    region: str | None = None
    drop: frozenset[str] = frozenset()
    headers: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The chat address below the base; a base that already ends in the path's ``/v1`` does not get it twice."""
        base, path = self.base_url.rstrip("/"), self.vendor.chat_path
        return base + (path.removeprefix("/v1") if base.endswith("/v1") else path)

    def __repr__(self) -> str:
        return f"Target(vendor={self.vendor.name!r}, base_url={self.base_url!r})"

    @property
    def secrets(self) -> tuple[str | None, ...]:
        """What no message may show."""
        return (self.api_key,) if self.auth is None else (self.api_key, *self.auth.secrets)


_DROPPABLE = frozenset(
    "tool_choice parallel_tool_calls response_format temperature top_p max_completion_tokens reasoning_effort".split()
)


def undropped(call: Chat, target: Target) -> Chat:
    """``call`` without the fields that the vendor's row or the target drops, for a dialect with names of its own."""
    names = (target.vendor.drop | target.drop) & _DROPPABLE
    return msgspec.structs.replace(call, **dict.fromkeys(names)) if names else call


class Decoder(Protocol):
    """The reading side of one answer with a success status. After its `Finish`, anything more is ignored.

    Both methods give their chunks one by one, so that those before an error come out before it is raised: what
    the caller has seen must not depend on how the bytes were split.
    """

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """The chunks that ``data`` completes. Raises `ProviderError` for an error within the stream or nonsense."""
        ...

    def end(self) -> Iterator[Chunk]:
        """The body is over: the last chunks. Raises `ProviderError` ``cut`` if the answer was not complete."""
        ...


class Dialect(Protocol):
    """A family of endpoints that speak the same JSON."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The streamed request for ``call``."""
        ...

    def decoder(self) -> Decoder:
        """A fresh decoder for one answer."""
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an answer with an error status means. ``headers`` has lower-case names."""
        ...
