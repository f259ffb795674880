"""libpq's connection URIs, for a driver that knows most of them: what it gets, and what is refused by name.

What must live here: which connection parameter goes where. What must not: connecting.
"""

import configparser
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

import msgspec

from loomgate.errors import StoreError

# Parameters that the driver takes under the same name, and those about TLS, which it takes from a URI only.
_SAME = ("user", "password", "passfile", "target_session_attrs", "krbsrvname", "gsslib")
_TLS = (
    "sslmode sslcert sslkey sslrootcert sslcrl sslpassword sslnegotiation ssl_min_protocol_version"
    " ssl_max_protocol_version"
).split()
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
# Parameters of libpq that the driver does not have, with the values that ask for what it does anyway.
_DEFAULTS = {
    "client_encoding": ("utf8", "UTF8", "UTF-8", "auto"),
    "channel_binding": ("disable", "prefer"),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
# A node that hangs or vanishes in the middle of a transaction must not hold its locks for longer than a lease: the
# server ends the transaction (docs/why/postgresql.md). Milliseconds, and seconds for TCP's own probes.
_SESSION = {
    "application_name": "loomgate",
    "idle_in_transaction_session_timeout": "5000",
    "lock_timeout": "5000",
    "statement_timeout": "30000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
# And a server that vanishes must not be waited for: options of our end of the connection, and their default values.
_SOCKET = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
_OPTION = {
    "keepalives_idle": "TCP_KEEPIDLE",
    "keepalives_interval": "TCP_KEEPINTVL",
    "keepalives_count": "TCP_KEEPCNT",
    "tcp_user_timeout": "TCP_USER_TIMEOUT",
}
_CONNECT_SECONDS = 5.0
_COMMAND_SECONDS = 30.0


class Arguments(msgspec.Struct, frozen=True):
    """``connect``: what `asyncpg.connect` is called with; ``place``: the server and database, without a secret;
    ``tcp``: the options (level, name, value) to set on a connection's socket, if it is TCP's."""

    connect: dict[str, Any]
    place: str
    tcp: list[tuple[int, int, int]] = []


def arguments(url: str) -> Arguments:
    """``url``, a libpq URI, as the driver takes it. Raises `StoreError` that names a parameter not known here."""
    given = _parameters(url)
    if service := given.pop("service", os.environ.get("PGSERVICE", "")):
        given = {**_service(service, given.pop("servicefile", "")), **given}
    hosts, ports = _hosts(given)
    database = given.pop("dbname", "")
    place = f"{_shown(hosts, ports)}/{database}"

    def refuse(name: str, wanted: str) -> StoreError:
        return StoreError(f"the database {place} cannot be used: {name} in its URL has to be {wanted}")

    connect: dict[str, Any] = {"timeout": _CONNECT_SECONDS, "command_timeout": _COMMAND_SECONDS}
    settings, tls, probes = dict(_SESSION), dict[str, str](), dict(_SOCKET)
    alive = True
    if hosts:
        connect["host"] = hosts
        if any(ports):
            try:
                connect["port"] = [int(port or "5432") for port in ports]
            except ValueError:
                raise refuse("port", "a number for each host") from None
    if database:
        connect["database"] = database
    for name, value in given.items():
        if name in _SAME:
            connect[name] = value
        elif name in _TLS:
            if name in _FILES and value and not Path(value).is_file():
                raise refuse(name, f"a file that can be read, which {value} is not")
            tls[name] = value
        elif name in ("application_name", "fallback_application_name"):
            if name == "application_name" or "application_name" not in given:
                settings["application_name"] = value
        elif name == "options":
            settings["options"] = value
            # What the options set themselves is theirs: a parameter of the session would win against them.
            for own in re.findall(r"(?:-c\s*|--)([\w.-]+)\s*=", value):
                settings.pop(own.replace("-", "_"), None)
        elif name == "connect_timeout":
            if not value.isdecimal():
                raise refuse(name, "a number of seconds")
            connect["timeout"] = max(2.0, float(value)) if int(value) else None
        elif name == "keepalives":
            if value not in ("0", "1"):
                raise refuse(name, "0 or 1")
            alive = value == "1"
        elif name in _SOCKET:
            if not value.isdecimal():
                raise refuse(name, "a number")
            probes[name] = int(value)
        elif name not in _DEFAULTS:
            raise StoreError(f"the database {place} cannot be used: its URL has `{name}`, which is not known here")
        elif value not in _DEFAULTS[name]:
            raise refuse(name, " or ".join(_DEFAULTS[name]))
    # Only what is about TLS is left in the URI: the driver knows no arguments for it.
    connect["dsn"] = f"postgresql://?{urlencode(tls, quote_via=quote)}" if tls else None
    return Arguments({**connect, "server_settings": settings}, place, _tcp(probes, alive))


def _parameters(url: str) -> dict[str, str]:
    """The URI's parameters under libpq's names; like libpq, a plus sign is no space."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise StoreError("the database cannot be used: its URL does not begin with postgresql://")
    rest, _, query = rest.partition("?")
    place, _, database = rest.partition("/")
    login, at, place = place.rpartition("@")
    user, colon, password = login.partition(":")
    found: dict[str, str] = {}
    if database:
        found["dbname"] = unquote(database)
    if at and user:
        found["user"] = unquote(user)
    if colon:
        found["password"] = unquote(password)
    if place:
        parts = [re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(\d*))?", part) for part in place.split(",")]
        if not all(parts):
            raise StoreError("the database cannot be used: the hosts of its URL are not understood")
        found["host"] = ",".join(unquote(part[1]).strip("[]") for part in parts if part)
        if any(part[2] for part in parts if part):
            found["port"] = ",".join(part[2] or "" for part in parts if part)
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        found[unquote(name)] = unquote(value)
    return found


def _service(name: str, file: str) -> Mapping[str, str]:
    """The parameters of the service ``name`` in the service file."""
    path = Path(file or os.environ.get("PGSERVICEFILE", "") or Path.home() / ".pg_service.conf")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open() as opened:
            parser.read_file(opened)
        return dict(parser[name])
    except (OSError, configparser.Error, KeyError):
        raise StoreError(f"the database cannot be used: {path} does not have the service {name}") from None


def _hosts(given: dict[str, str]) -> tuple[list[str], list[str]]:
    """Hosts (or folders of Unix sockets) and their ports, taken out of ``given``; "" for a port that is not given."""
    host, address = given.pop("host", ""), given.pop("hostaddr", "")
    if address and host and given.get("sslmode") == "verify-full":
        raise StoreError(
            "the database cannot be used: its URL has `hostaddr` beside `host` with sslmode=verify-full, which is not"
            " known here"
        )
    hosts = [one or "localhost" for one in (address or host).split(",")] if address or host else []
    ports = given.pop("port", "").split(",")
    if len(ports) == 1:
        ports = ports * max(len(hosts), 1)
    if not hosts and any(ports):
        hosts = ["localhost"]
    if hosts and len(ports) != len(hosts):
        raise StoreError("the database cannot be used: its URL has as many ports as hosts, or one")
    return hosts, ports


def _shown(hosts: list[str], ports: list[str]) -> str:
    pairs = zip(hosts, ports, strict=False)
    return ",".join(f"{host}:{port}" if port else host for host, port in pairs) or "localhost"


def _tcp(probes: dict[str, int], alive: bool) -> list[tuple[int, int, int]]:
    found = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(alive))]
    for name, value in probes.items():
        option = getattr(socket, _OPTION[name], None)  # not every system has all of them
        if option is not None and value and (alive or name == "tcp_user_timeout"):
            found.append((socket.IPPROTO_TCP, option, value))
    return found
