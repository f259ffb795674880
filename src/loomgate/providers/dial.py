"""Where connections come from: addresses, which of them are public, proxies, TLS.

What must live here: everything between a URL's origin and a connection that is ready for its first request, and the
words for why there is none. What must not: requests to endpoints (``http1``), and how long it may take (``transport``).
"""

import asyncio
import base64
import ipaddress
import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import unquote, urlsplit

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.http1 import Connection, request_head
from loomgate.providers.pool import Pool

# Seconds after which the next of a name's addresses is tried beside the one that does not answer (RFC 8305).
_STAGGER = 0.25
_PORTS = {"http": 80, "https": 443}

IPv4 = ipaddress.IPv4Address
IPv6 = ipaddress.IPv6Address

# What is not the public internet: IANA's special-purpose registries (RFC 6890 and its successors).
_PRIVATE_4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # a public number at which Azure answers its own machines
        "169.254.0.0/16",  # link-local: the metadata of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
_GLOBAL_6 = ipaddress.IPv6Network("2000::/3")
_PRIVATE_6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",
        "3fff::/20",
    )
]
# IPv6 that carries an IPv4 address: the network, and how far right the 32 bits begin.
_CARRIERS = [
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
]


def is_public(address: str) -> bool:
    """Whether ``address`` is of the public internet. IPv6 that carries an IPv4 address counts as that one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, IPv6):
        for network, shift in _CARRIERS:
            if ip in network:
                return is_public(str(IPv4(int(ip) >> shift & 0xFFFFFFFF)))
        return ip in _GLOBAL_6 and not any(ip in network for network in _PRIVATE_6)
    return not any(ip in network for network in _PRIVATE_4)


class Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy: ``login`` is the finished ``Proxy-Authorization`` line, or empty."""

    scheme: str
    host: str
    port: int
    login: str

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


class Origin(msgspec.Struct, frozen=True):
    """What stands before the path of a URL, taken apart.

    ``authority`` is the Host header's value, ``login`` an ``Authorization`` line if the URL holds a name and password,
    ``prefix`` what goes before the path in a request (for a plain request through a proxy).
    """

    scheme: str
    host: str
    port: int
    authority: str
    login: str
    proxy: Proxy | None
    prefix: str
    public_only: bool

    @property
    def key(self) -> tuple[str, str, int, bool]:
        """What connections are shared by."""
        return (self.scheme, self.host, self.port, self.public_only)

    @property
    def more(self) -> str:
        """Lines of each request that goes there."""
        return self.proxy.login if self.proxy is not None and self.prefix else ""


def origin_of(url: str, *, public_only: bool = False) -> Origin:
    """The origin of an ``http`` or ``https`` URL, with the environment's proxy for it.

    Raises `ProviderError` ``connect`` when it is no such URL.
    """
    wrong = ProviderError("connect", f"The address of the endpoint is not an http URL: {_shown(url)}")
    if re.search(r"[\0-\x20\x7f\\]", url):
        raise wrong
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme, parts.port
        host = _ascii(parts.hostname or "")
    except (ValueError, UnicodeError):
        raise wrong from None
    if scheme not in _PORTS or not host or port == 0:
        raise wrong
    named = f"[{host}]" if ":" in host else host
    authority = named if port in (None, _PORTS[scheme]) else f"{named}:{port}"
    proxy = _proxy_for(scheme, authority)
    return Origin(
        scheme=scheme,
        host=host,
        port=port or _PORTS[scheme],
        authority=authority,
        login=_login("Authorization", parts.username, parts.password),
        proxy=proxy,
        prefix=f"http://{authority}" if proxy is not None and scheme == "http" else "",
        public_only=public_only,
    )


def _shown(url: str) -> str:
    """``url`` for a message: no password, no query, no line breaks."""
    text = re.sub(r"//[^/@]*@", "//", url.partition("?")[0])
    return re.sub(r"[^\x20-\x7e]", "?", text)[:200]


def _ascii(host: str) -> str:
    if ":" in host:
        return str(IPv6(host))
    if not host.isascii():
        host = host.encode("idna").decode()
    if not re.fullmatch(r"[A-Za-z0-9._-]+", host):
        raise ValueError(host)
    return host


def _login(header: str, user: str | None, password: str | None) -> str:
    if not user and not password:
        return ""
    pair = f"{unquote(user or '')}:{unquote(password or '')}".encode()
    return f"{header}: Basic {base64.b64encode(pair).decode()}\r\n"


def _proxy_for(scheme: str, authority: str) -> Proxy | None:
    """The proxy that ``http_proxy``, ``https_proxy`` and ``no_proxy`` name."""
    # Only the names and rules of these variables are taken from there, as everybody takes them.
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: TID251

    found = getproxies_environment().get(scheme)
    if not found or proxy_bypass(authority):
        return None
    try:
        parts = urlsplit(found if "://" in found else f"http://{found}")
        host, port = _ascii(parts.hostname or ""), parts.port
    except (ValueError, UnicodeError):
        host, port, parts = "", None, urlsplit("")
    if not host or parts.scheme not in ("http", "https"):
        raise ProviderError("connect", f"{scheme}_proxy is not the http URL of a proxy.")
    login = _login("Proxy-Authorization", parts.username, parts.password)
    return Proxy(parts.scheme, host, port or _PORTS[parts.scheme], login)


class Dialer:
    """Makes connections. ``ca_file``: a PEM file of authorities that are trusted beside the system's."""

    def __init__(self, ca_file: str | None = None) -> None:
        self._ca_file = ca_file
        self._trust: ssl.SSLContext | None = None

    async def connect(self, origin: Origin, pool: Pool, *, tunnel: bool = False) -> Connection:
        """A new connection to ``origin``, through its proxy if it has one, of which ``pool`` knows.

        A proxy passes plain requests on itself, unless a ``tunnel`` is asked for.

        With ``public_only`` the name is resolved once, every address is checked, and only those are connected to.
        Raises `ProviderError` ``connect``.
        """
        proxy = origin.proxy
        if proxy is None:
            addresses = await _resolve(origin.host, origin.port)
            if origin.public_only:
                _check_public(origin.host, addresses)
            who, host = origin.host, origin.host
        else:
            if origin.public_only:
                _check_public(origin.host, await _resolve(origin.host, origin.port))
            addresses = await _resolve(proxy.host, proxy.port)
            who, host = f"the proxy {proxy.host}", proxy.host
        connection: Connection | None = None
        try:
            connection = await _first(addresses, lambda: Connection(origin.key, pool))
            _keep_alive(connection)
            if proxy is not None and proxy.scheme == "https":
                await self._encrypt(connection, host)
            if proxy is not None and (tunnel or origin.scheme == "https"):
                await _tunnel(connection, origin, proxy)
                who = host = origin.host
            if origin.scheme == "https":
                await self._encrypt(connection, host)
        except BaseException as error:
            if connection is not None:
                connection.abort()
            if isinstance(error, ssl.SSLCertVerificationError):
                said = f"The certificate of {who} is not trusted: {error.verify_message}"
                raise ProviderError("connect", said) from error
            if isinstance(error, ssl.SSLError):
                raise ProviderError("connect", f"No TLS with {who}: {error.reason or error}") from error
            if isinstance(error, OSError):
                raise ProviderError("connect", f"No connection to {who}: {_words(error)}") from error
            raise
        return connection

    async def _encrypt(self, connection: Connection, host: str) -> None:
        if self._trust is None:
            self._trust = await asyncio.to_thread(self._trusted)  # reads a large file
        before = connection.transport
        assert before is not None
        after = await asyncio.get_running_loop().start_tls(before, connection, self._trust, server_hostname=host)
        if after is None:
            raise ConnectionResetError
        connection.transport = after

    def _trusted(self) -> ssl.SSLContext:
        trust = ssl.create_default_context()
        trust.set_alpn_protocols(["http/1.1"])
        if self._ca_file:
            try:
                trust.load_verify_locations(self._ca_file)
            except OSError as error:  # which `ssl.SSLError` is, too
                said = f"The file of authorities {self._ca_file} cannot be used: {_words(error)}"
                raise ProviderError("connect", said) from error
        return trust


def _words(error: OSError) -> str:
    """One line: what the system calls it, rather than what the event loop makes of it."""
    if isinstance(error, (ssl.SSLError, socket.gaierror)) or not error.errno:
        return str(error.strerror or error) or "the connection was closed"
    return os.strerror(error.errno)


async def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    """Addresses (numbers) and ports of ``host``, in the system's order of preference."""
    with suppress(ValueError):
        return [(str(ipaddress.ip_address(host)), port)]
    try:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (socket.gaierror, UnicodeError) as error:
        said = error.strerror if isinstance(error, socket.gaierror) else "not a name"
        raise ProviderError("connect", f"No connection to {host}: {said}") from error
    addresses = [(str(address[0]), int(address[1])) for *_, address in found]
    return list(dict.fromkeys(addresses))


def _check_public(host: str, addresses: Sequence[tuple[str, int]]) -> None:
    """One private address is enough to refuse the name: whoever answers so wants something inside."""
    for address, _ in addresses:
        if not is_public(address):
            raise ProviderError("connect", f"{host} is not an address of the public internet.")


async def _first(addresses: Sequence[tuple[str, int]], make: Callable[[], Connection]) -> Connection:
    """The connection that is there first. Another address is tried when one has failed or does not answer soon."""
    loop = asyncio.get_running_loop()

    async def one(address: tuple[str, int]) -> Connection:
        _, connection = await loop.create_connection(make, *address)
        return connection

    if len(addresses) == 1:
        return await one(addresses[0])
    waiting = list(reversed(_alternating(addresses)))
    tasks: list[asyncio.Task[Connection]] = []
    pending: set[asyncio.Task[Connection]] = set()
    winner: asyncio.Task[Connection] | None = None
    failure: BaseException = OSError("no address")
    try:
        while waiting or pending:
            if waiting:
                tasks.append(asyncio.create_task(one(waiting.pop())))
                pending.add(tasks[-1])
            wait = _STAGGER if waiting else None
            done, pending = await asyncio.wait(pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is None:
                    winner = task
                    return task.result()
                failure = error
        raise failure
    finally:
        for task in tasks:
            if task is not winner:
                task.cancel()
                task.add_done_callback(_too_late)


def _alternating(addresses: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The same, IPv6 and IPv4 in turns, beginning with the preferred kind: one of them may lead nowhere."""
    first = [address for address in addresses if (":" in address[0]) == (":" in addresses[0][0])]
    other = [address for address in addresses if address not in first]
    mixed = [address for pair in zip(first, other, strict=False) for address in pair]
    return mixed + first[len(other) :] + other[len(first) :]


def _too_late(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


def _keep_alive(connection: Connection) -> None:
    """Let the system notice a peer that has vanished while nothing is sent."""
    assert connection.transport is not None
    sock = connection.transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


async def _tunnel(connection: Connection, origin: Origin, proxy: Proxy) -> None:
    """Ask the proxy for a way through (RFC 9110 section 9.3.6)."""
    named = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = f"{named}:{origin.port}"
    head, _ = request_head("CONNECT", place, place, {}, 0, proxy.login)
    connection.begin(head, bodiless=True)
    while not connection.status and not connection.failure:
        await connection.wait()
    if not 200 <= connection.status < 300:
        said = f"answered {connection.status}" if connection.status else "closed the connection"
        raise ProviderError("connect", f"The proxy {proxy.host} does not lead to {origin.host}: it {said}.")
    if connection.spoiled:
        raise ProviderError("connect", f"The proxy {proxy.host} says more than that it leads to {origin.host}.")
    connection.renew(idle=False)
