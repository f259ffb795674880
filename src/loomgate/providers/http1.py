"""HTTP/1.1 on one connection (RFC 9112).

What must live here: the bytes of a request, the state of one exchange, and whether its connection may serve again. What
must not: where a connection leads and how it is made (``dial``), which one serves next (``pool``), deadlines, and what
a failure means (``transport``).
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from loomgate.errors import ProviderError

if TYPE_CHECKING:
    from loomgate.providers.pool import Pool

# Bytes of an answer's headers, and of anything else that is not body: between two pieces of body, no more than that.
LONGEST_HEAD = 64 * 1024
# Unread bytes of a body at which reading from the socket pauses; one read more may be there already.
HIGH_WATER = 64 * 1024

_ONE_WRITE = 64 * 1024  # a body up to this goes out in one write with its headers
_SLICE = 128 * 1024
_SLICES_A_TURN = 8

# --- the request ------------------------------------------------------------------------------------------------------

# What a header of the caller's changes about the request, as bits.
HOST, AGENT, ACCEPT, ENCODING, AUTHORIZATION, LENGTH, CONNECTION, FORBIDDEN, CLOSE = (1 << n for n in range(9))
_ROLES = {
    "host": HOST,
    "user-agent": AGENT,
    "accept": ACCEPT,
    "accept-encoding": ENCODING,
    "authorization": AUTHORIZATION,
    "content-length": LENGTH,
    "connection": CONNECTION,
    # How the bytes are framed is decided here, and nobody else's credentials go to a proxy.
    "transfer-encoding": FORBIDDEN,
    "trailer": FORBIDDEN,
    "upgrade": FORBIDDEN,
    "proxy-authorization": FORBIDDEN,
    "proxy-connection": FORBIDDEN,
}
_DEFAULTS = (
    (AGENT, "User-Agent: loomgate\r\n"),
    (ACCEPT, "Accept: */*\r\n"),
    (ENCODING, "Accept-Encoding: identity\r\n"),
)
_ALL_DEFAULTS = "".join(line for _, line in _DEFAULTS)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BODILESS_METHODS = frozenset({"CONNECT", "GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})
_known_names: dict[str, int] = {}
_known_methods = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _role(name: str) -> int:
    """Bits of a header seen for the first time. Raises `ProviderError` ``invalid`` when it is no header's name."""
    if not _TOKEN.fullmatch(name):
        raise ProviderError("invalid", f"{name[:100]!r} cannot be the name of a header.")
    if len(_known_names) >= 4096:  # names can come from clients
        _known_names.clear()
    role = _known_names[name] = _ROLES.get(name.lower(), 0)
    return role


def request_head(
    method: str, target: str, host: str, headers: Mapping[str, str], length: int, more: str = "", login: str = ""
) -> tuple[bytes, int]:
    """The request line and headers, and which `HOST` … the caller's ``headers`` had (bits).

    ``host`` is the Host header's value, ``length`` the body's in bytes, ``more`` finished lines of our own, ``login``
    such a line for when the caller has no Authorization. `CLOSE` is set when the caller wants that.

    Raises `ProviderError` ``invalid`` for what would not be one header each, naming the header and never its value.
    """
    head, seen, claimed = _head(method, target, host, tuple(headers.items()), more, login)
    if claimed is not None and claimed != str(length):
        raise ProviderError("invalid", "The header 'Content-Length' is not the length of the body.")
    if not length and method in _BODILESS_METHODS:
        return head + b"\r\n", seen
    return b"%bContent-Length: %d\r\n\r\n" % (head, length), seen


@lru_cache(maxsize=64)  # calls to one endpoint with one key differ in nothing but their length
def _head(
    method: str, target: str, host: str, headers: tuple[tuple[str, str], ...], more: str, login: str
) -> tuple[bytes, int, str | None]:
    """All of `request_head` but the length and the empty line; the length that the caller claims, if it does."""
    if method not in _known_methods and not _TOKEN.fullmatch(method):
        raise ProviderError("invalid", f"{method[:100]!r} is not an HTTP method.")
    seen = lines = 0
    text = ""
    claimed = None
    for name, value in headers:
        role = _known_names.get(name)
        if role is None:
            role = _role(name)
        if role == LENGTH:
            if claimed is not None and value.strip() != claimed:
                raise ProviderError("invalid", f"The header {name!r} is there twice.")
            claimed = value.strip()
            continue
        if seen & role & ~FORBIDDEN:
            raise ProviderError("invalid", f"The header {name!r} is there twice.")
        seen |= role
        lines += 1
        text += f"{name}: {value}\r\n"
    if text.count("\n") != lines or text.count("\r") != lines or "\0" in text:
        raise ProviderError("invalid", f"The header {_broken(dict(headers))!r} has a line break or a NUL in its value.")
    if seen & (CONNECTION | FORBIDDEN):
        seen |= _check_framing(dict(headers))
    if login and not seen & AUTHORIZATION:
        more += login
    if seen & (AGENT | ACCEPT | ENCODING):
        text += "".join(line for role, line in _DEFAULTS if not seen & role)
    else:
        text += _ALL_DEFAULTS
    first = f"{method} {target} HTTP/1.1\r\n" if seen & HOST else f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n"
    try:
        return (first + text + more).encode("utf-8", "surrogateescape"), seen, claimed
    except UnicodeEncodeError:
        raise ProviderError("invalid", "A header has a character that cannot be sent.") from None


def _broken(headers: Mapping[str, str]) -> str:
    return next((name for name, value in headers.items() if re.search(r"[\r\n\0]", value)), "?")


def _check_framing(headers: Mapping[str, str]) -> int:
    close = 0
    for name, value in headers.items():
        role = _known_names.get(name, 0)
        if role == FORBIDDEN:
            raise ProviderError("invalid", f"The header {name!r} cannot be set by a caller.")
        if role == CONNECTION:
            wish = value.strip().lower()
            if wish not in ("close", "keep-alive"):
                raise ProviderError("invalid", f"The header {name!r} can only be 'close' or 'keep-alive'.")
            close |= CLOSE * (wish == "close")
    return close


# --- one connection ---------------------------------------------------------------------------------------------------

_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"content-encoding"})


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time: ready for the first as it is made, for the next after `renew`.

    Whoever has it calls `begin`, then `wait` until `status` is set (the headers are there), then `take` and `wait`
    until `over`; `failure` says that it will not come to that: ``closed`` by the other side, or ``malformed``. Neither
    parsing nor writing starts another exchange by itself, so that what is left of one can never reach the next.
    """

    __slots__ = tuple(
        "_bodiless _dry _ended _framed _full _held _idle _interim _keep _parser _paused _rest _waiter encoding expires "
        "failure headers key listener lost over parts pool spoiled status touched transport".split()
    )

    def __init__(self, key: object, pool: "Pool") -> None:
        self.key = key
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.lost = False  # whether it is closed, or about to be
        self.expires = 0.0  # when to close it if it is still unused, on `clock.now`
        self._parser: HttpResponseParser | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._full = False  # whether the socket takes no more for now
        self._paused = False  # whether we read no more for now
        self._idle = False
        self.listener: Callable[[], None] | None = None  # called where `wait` would end, while nobody waits
        self._fresh()

    def _fresh(self) -> None:
        self.status = 0  # of the final answer, once its headers are complete
        self.headers: list[tuple[bytes, bytes]] = []  # in lower case
        self.parts: list[bytes] = []  # of the body, not yet taken
        self.over = False  # whether all of the answer has come
        self.failure: Literal["", "closed", "malformed"] = ""
        self.touched = False  # whether anything has come
        self.encoding = b""  # the value of Content-Encoding
        self._framed = False  # whether the headers say where the body ends
        self._bodiless = False
        self._interim = False
        self._keep = False
        self.spoiled = False  # whether there was more than one answer
        self._ended = False
        self._held = 0  # bytes in `parts`
        self._dry = 0  # bytes since there was any body
        self._rest: memoryview | None = None  # of the request's body, not yet written

    # --- for whoever has it ---

    def begin(self, head: bytes, body: bytes = b"", *, bodiless: bool = False) -> None:
        """Send a request. ``bodiless``: whatever its headers say, the answer has no body (HEAD, CONNECT)."""
        transport = self.transport
        self._idle = False
        if transport is None or self.lost or transport.is_closing():
            if self.lost and not self.over:
                self.failure = self.failure or "closed"
            return  # or else `connection_lost` will come
        self._bodiless = bodiless
        if self._parser is None:
            self._parser = HttpResponseParser(self)
        if self.touched:
            self.spoiled = True  # an answer before there was a question: the next would be the last one's
        if len(body) <= _ONE_WRITE:
            transport.write(head + body if body else head)
        else:
            transport.write(head)
            self._rest = memoryview(body)
            self._pump()

    async def wait(self) -> bool:
        """Until something has happened: True, or False when `expire` was called first."""
        if self._waiter is not None:
            raise RuntimeError("two tasks read one answer")
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await waiter
        finally:
            self._waiter = None

    def expire(self) -> None:
        """Let `wait` end with False, if anyone waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)

    @property
    def paused(self) -> bool:
        """Whether no more is read until what is here is taken."""
        return self._paused

    def take(self) -> bytes:
        """What has come of the body since the last time; reading goes on."""
        parts = self.parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self.parts = []
        self._held = 0
        if self._paused:
            self._resume()
        return data

    @property
    def reusable(self) -> bool:
        """Whether the exchange left nothing behind and both sides keep the connection."""
        return (
            self.over
            and self._keep
            and not (self.spoiled or self.lost or self._rest)
            and self.transport is not None
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def renew(self, *, idle: bool = True) -> None:
        """Forget the exchange. ``idle``: until the next one begins, anything that comes closes the connection."""
        if self._bodiless:
            self._parser = None  # it still expects the body that its headers announced
        self._fresh()
        self._idle = idle
        if self._paused:
            self._resume()
        if self._parser is None and not idle:
            self._parser = HttpResponseParser(self)

    def abort(self) -> None:
        """Close it at once."""
        self.lost = True
        if self.transport is not None:
            self.transport.abort()

    # --- of the event loop ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's are of a family of their own
        self._parser = HttpResponseParser(self)
        self.pool.all.add(self)
        if self.lost:
            transport.abort()

    def data_received(self, data: bytes) -> None:  # noqa: D102
        parser = self._parser
        if self._idle or self.over:
            self.spoiled = True
            self._retire()
            return
        if parser is None or self.failure or self.lost:
            return
        self.touched = True
        before = self._held
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            if not self.over:
                self.failure = "malformed"
            self.spoiled = True
        if self.over:
            if self.spoiled:
                self._retire()
        elif self.failure:
            self._retire()
        elif self._held == before:
            # Headers without end, interim answers without end, chunk extensions, trailers.
            self._dry += len(data)
            if self._dry > LONGEST_HEAD:
                self.failure = "malformed"
                self._retire()
        else:
            self._dry = 0
            if self._held >= HIGH_WATER and not self._paused and self.transport is not None:
                self._paused = True
                self.transport.pause_reading()
        if self.status or self.failure:
            self._tell()

    def eof_received(self) -> None:  # noqa: D102
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self.lost = True
        self._parser = None  # it refers to us, and we to it
        self._rest = None
        self.pool.all.discard(self)
        if self._idle:
            self.pool.drop(self)
        elif not self.over and not self.failure:
            if self.status and not self._framed and self._ended and exc is None:
                self.over = True  # a body without a length ends with the connection (RFC 9112 section 6.3)
            else:
                self.failure = "closed"
        self._tell()

    def pause_writing(self) -> None:  # noqa: D102
        self._full = True

    def resume_writing(self) -> None:  # noqa: D102
        self._full = False
        self._pump()

    def _tell(self) -> None:
        if self.listener is not None:
            self.listener()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def _pump(self) -> None:
        """Write of the body what the socket takes; the event loop calls again. An answer may come meanwhile."""
        transport, rest = self.transport, self._rest
        if rest is None or transport is None:
            return
        for _ in range(_SLICES_A_TURN):
            if self._full or self.lost or transport.is_closing():
                return
            transport.write(rest[:_SLICE])
            self._rest = rest = rest[_SLICE:] or None
            if rest is None:
                return
        if not self._full:
            asyncio.get_running_loop().call_soon(self._pump)

    def _resume(self) -> None:
        self._paused = False
        if not self.lost and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _retire(self) -> None:
        if self._idle:
            self.pool.drop(self)
        self.abort()

    # --- of the parser ---

    def on_message_begin(self) -> None:  # noqa: D102
        if self.over:
            self.spoiled = True

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: D102
        if self.status:
            return  # a trailer
        name = name.lower()
        self.headers.append((name, value))
        if name in _FRAMING:
            if name == b"content-encoding":
                self.encoding = value.strip().lower()
            else:
                self._framed = True
                if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                    self.failure = "malformed"  # no other coding was offered

    def on_headers_complete(self) -> None:  # noqa: D102
        parser = self._parser
        if self.over or self.failure or parser is None:
            return
        status = parser.get_status_code()
        if status < 200:
            # 101 is an answer to a question that is not asked here.
            if status < 100 or status == 101:
                self.failure = "malformed"
            self._interim = True
            self.headers = []
            self.encoding = b""
            self._framed = False
        else:
            if sum([len(name) + len(value) for name, value in self.headers]) > LONGEST_HEAD:
                self.failure = "malformed"
                return
            self.status = status
            if self._bodiless:
                self.over = True
                self._keep = parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:  # noqa: D102
        if self.over:
            self.spoiled = True
        else:
            self.parts.append(body)
            self._held += len(body)

    def on_message_complete(self) -> None:  # noqa: D102
        if self._interim:
            self._interim = False
        elif not self.over and not self.failure and self._parser is not None:
            self.over = True
            self._keep = self._parser.should_keep_alive()
