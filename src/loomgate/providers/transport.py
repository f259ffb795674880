"""The single HTTP door out: pooled connections, time-outs, limits. Only this file imports the HTTP client.

What must live here: sending a request, handing out the answer's status, headers and body pieces, and saying in our
words how a connection failed. What must not: what the bytes mean, and trying a call again that an endpoint has seen.
"""

import asyncio
import contextlib
import io
import ssl
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import msgspec

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall

if TYPE_CHECKING:
    import aiohttp

# aiohttp warns when a larger body is given as bytes, since writing it holds up the event loop.
_LARGE_BODY = 1024 * 1024


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: to get a connection; from sending to the answer's headers; between two pieces; for all of it."""

    connect: float = 10.0
    first_byte: float = 120.0
    idle: float = 120.0
    total: float = 600.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Connections in all (0: no limit), seconds an unused one is kept, and a PEM file of further authorities."""

    connections: int = 1000
    keep_alive: float = 30.0
    ca_file: str | None = None


class Reply:
    """An answer whose headers have come. Use it as an async context manager; leaving it gives the connection back,
    or closes it at once when the body was not read to its end."""

    def __init__(self, transport: "Transport", answer: "aiohttp.ClientResponse", watch: "_Watch") -> None:
        self._transport = transport
        self._answer = answer
        self._watch = watch
        self._got = False
        self.status: int = answer.status

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers, names in lower case."""
        return {name.lower(): value for name, value in self._answer.headers.items()}

    async def piece(self) -> bytes:
        """The next bytes of the body as they come, ``b""`` at its end.

        Raises `ProviderError` ``timeout``; ``cut`` when the body breaks off, or ``connect`` if nothing of it came.
        """
        watch = self._watch
        watch.begin("idle", watch.timeouts.idle)
        self._transport.watch(watch)
        try:
            async with watch.scope():
                data = await self._answer.content.readany()
        except TimeoutError:
            raise watch.error() from None
        except (OSError, *_client_errors()) as error:
            if self._got:
                raise ProviderError("cut", "The connection to the endpoint broke within the answer.") from error
            raise ProviderError("connect", "The connection to the endpoint broke before the answer.") from error
        self._got = True
        return data

    async def read(self, limit: int) -> bytes:
        """The body, or its first ``limit`` bytes. Raises as `piece` does."""
        body = b""
        while len(body) < limit and (data := await self.piece()):
            body += data
        return body[:limit]

    def hurry(self, timeouts: Timeouts) -> None:
        """Let ``timeouts`` hold from here on."""
        self._watch.timeouts = timeouts

    def close(self) -> None:
        """Give the connection back, or close it if the answer is not over."""
        self._transport.unwatch(self._watch)
        if self._answer.content.is_eof():
            self._answer.release()
        else:
            self._answer.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Watch:
    """The deadline of one call: one number, moved as the call proceeds; `Transport` looks after all of them."""

    __slots__ = ("_scope", "due", "end", "phase", "reused", "timeouts")

    def __init__(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self.end = clock.now() + timeouts.total
        self.due = 0.0
        self.phase = ""
        self.reused = False  # whether the request went out on a kept connection
        self._scope: asyncio.Timeout | None = None

    def begin(self, phase: str, seconds: float) -> None:
        self.phase = phase
        self.due = min(clock.now() + seconds, self.end)

    def scope(self) -> asyncio.Timeout:
        """Wraps whatever may block. It has no timer of its own: `fire` ends it."""
        self._scope = asyncio.timeout(None)
        return self._scope

    def fire(self) -> None:
        if self._scope is not None and not self._scope.expired():
            # Between two pieces nobody waits, which reschedule reports: the next `begin` starts a new span.
            with contextlib.suppress(RuntimeError):
                self._scope.reschedule(asyncio.get_running_loop().time())

    def error(self) -> ProviderError:
        what = {"first_byte": "did not begin to answer", "idle": "fell silent"}[self.phase]
        if self.due >= self.end:
            return ProviderError("timeout", f"The endpoint did not finish within {self.timeouts.total:g} seconds.")
        return ProviderError("timeout", f"The endpoint {what} for {getattr(self.timeouts, self.phase):g} seconds.")


class Transport:
    """The HTTP client: one per process and event loop, shared by all calls, closed with `close`."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._session: aiohttp.ClientSession | None = None
        self._fresh: aiohttp.ClientSession | None = None
        self._proxies: dict[tuple[str, str], str | None] = {}
        self._watches: set[_Watch] = set()
        self._watchman: asyncio.Task[None] | None = None
        self._next_look = 0.0

    async def send(self, call: HttpCall, timeouts: Timeouts) -> Reply:
        """Send ``call`` and return once the answer's headers are there; redirects are answers like any other.

        A kept connection that the other side has closed meanwhile is replaced by a fresh one, once. Raises
        `ProviderError` ``connect`` (no connection, or it broke before an answer) or ``timeout``.
        """
        watch = _Watch(timeouts)
        watch.begin("first_byte", timeouts.first_byte)
        self.watch(watch)
        try:
            answer = await self._post(self._pooled(), call, watch)
            if answer is None and watch.reused:
                answer = await self._post(self._unpooled(), call, watch)
            if answer is None:
                raise ProviderError("connect", "The endpoint closed the connection without an answer.")
        except BaseException:
            self.unwatch(watch)
            raise
        return Reply(self, answer, watch)

    async def close(self) -> None:
        """Close every connection. Calls under way break."""
        sessions, self._session, self._fresh = (self._session, self._fresh), None, None
        if self._watchman is not None:
            self._watchman.cancel()
            self._watchman = None
        for session in sessions:
            if session is not None:
                await session.close()

    def watch(self, watch: "_Watch") -> None:
        """See to it that ``watch`` fires when it is due (for `Reply`).

        One task looks after all calls, asleep until the earliest deadline: a timer a piece would cost more than
        the piece.
        """
        self._watches.add(watch)
        if self._watchman is None or self._watchman.done() or watch.due < self._next_look:
            if self._watchman is not None:
                self._watchman.cancel()
            self._next_look = watch.due
            self._watchman = asyncio.get_running_loop().create_task(self._keep_watch())

    def unwatch(self, watch: "_Watch") -> None:
        """No more deadline for this call (for `Reply`)."""
        self._watches.discard(watch)

    async def _post(
        self, session: "aiohttp.ClientSession", call: HttpCall, watch: "_Watch"
    ) -> "aiohttp.ClientResponse | None":
        """One try: the answer, or None when the connection broke after the request and before anything came back."""
        import aiohttp

        try:
            host = urlsplit(call.url).hostname or call.url
        except ValueError:
            raise ProviderError("connect", f"The address of the endpoint is not an http URL: {call.url}") from None
        body: Any = call.body if len(call.body) <= _LARGE_BODY else io.BytesIO(call.body)
        limits = aiohttp.ClientTimeout(total=None, connect=watch.timeouts.connect)
        try:
            async with watch.scope():
                return await session.request(
                    call.method,
                    call.url,
                    data=body,
                    headers=call.headers,
                    allow_redirects=False,
                    timeout=limits,
                    trace_request_ctx=watch,
                    proxy=self._proxy(call.url),
                )
        except aiohttp.ClientConnectorCertificateError as error:
            said = f"The certificate of {host} is not trusted: {error.certificate_error}"
            raise ProviderError("connect", said) from error
        except aiohttp.ClientConnectorError as error:
            raise ProviderError("connect", f"No connection to {host}: {error.os_error}") from error
        except aiohttp.ConnectionTimeoutError as error:
            seconds = watch.timeouts.connect
            raise ProviderError("connect", f"No connection to {host} within {seconds:g} seconds.") from error
        except TimeoutError:
            raise watch.error() from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ProviderError("connect", f"The address of the endpoint is not an http URL: {host}") from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError):
            return None
        except (aiohttp.ClientError, ValueError) as error:
            raise ProviderError("malformed", f"{host} did not answer in HTTP: {type(error).__name__}") from error

    # --- sessions ---

    def _pooled(self) -> "aiohttp.ClientSession":
        if self._session is None:
            self._session = self._open(keep=True)
        return self._session

    def _unpooled(self) -> "aiohttp.ClientSession":
        if self._fresh is None:
            self._fresh = self._open(keep=False)
        return self._fresh

    def _open(self, *, keep: bool) -> "aiohttp.ClientSession":
        import aiohttp

        trust = ssl.create_default_context()
        if self._limits.ca_file:
            trust.load_verify_locations(self._limits.ca_file)
        limit = self._limits.connections
        connector = (
            aiohttp.TCPConnector(limit=limit, ssl=trust, keepalive_timeout=self._limits.keep_alive)
            if keep
            else aiohttp.TCPConnector(limit=limit, ssl=trust, force_close=True)
        )
        told = aiohttp.TraceConfig()
        told.on_connection_reuseconn.append(_note_reuse)
        return aiohttp.ClientSession(
            connector=connector,
            trace_configs=[told],
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "loomgate", "Accept-Encoding": "identity"},
            trust_env=False,  # it would read the environment again for every request: see `_proxy`
        )

    def _proxy(self, url: str) -> str | None:
        """The proxy that ``http_proxy``, ``https_proxy`` and ``no_proxy`` name for this host, looked up once."""
        # Only the names and rules of these variables are taken from there, as everybody takes them.
        from urllib.request import getproxies_environment, proxy_bypass  # noqa: TID251

        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc)
        if key not in self._proxies:
            found = getproxies_environment().get(parts.scheme)
            around = proxy_bypass(parts.netloc)
            self._proxies[key] = None if around else found
        return self._proxies[key]

    async def _keep_watch(self) -> None:
        while self._watches:
            now = clock.now()
            for watch in tuple(self._watches):
                if watch.due <= now:
                    watch.fire()
            self._next_look = min((w.due for w in self._watches if w.due > now), default=now + 1.0)
            await clock.sleep(self._next_look - now)


async def _note_reuse(_session: object, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.reused = True


def _client_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return (aiohttp.ClientError,)
