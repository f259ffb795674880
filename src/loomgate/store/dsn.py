"""libpq's connection URIs, for a driver that knows most of them: what it gets, and what is refused by name.

What must live here: which connection parameter goes where. What must not: connecting.
"""

from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec

from loomgate.errors import StoreError

# Parameters that asyncpg takes from the URI itself.
_OWN = frozenset(
    "host port dbname user password passfile service servicefile sslmode sslcert sslkey sslrootcert sslcrl sslpassword"
    " sslnegotiation ssl_min_protocol_version ssl_max_protocol_version target_session_attrs krbsrvname gsslib".split()
)

# Parameters that are settings of the server's for the session.
_SETTINGS = frozenset({"application_name", "options", "search_path"})
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
# server ends the transaction. Milliseconds, and seconds for TCP's own probes.
_SESSION = {
    "application_name": "loomgate",
    "idle_in_transaction_session_timeout": "5000",
    "lock_timeout": "5000",
    "statement_timeout": "30000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
_CONNECT_SECONDS = 5.0
_COMMAND_SECONDS = 30.0


class Arguments(msgspec.Struct, frozen=True):
    """``connect``: what `asyncpg.connect` is called with; ``place``: the server and database, without a secret."""

    connect: dict[str, Any]
    place: str


def arguments(url: str) -> Arguments:
    """``url``, a libpq URI, as the driver takes it. Raises `StoreError` that names a parameter not known here."""
    parts = urlsplit(url)
    place = f"{parts.hostname or 'localhost'}{parts.path}"
    kept: list[tuple[str, str]] = []
    settings = dict(_SESSION)
    connect: dict[str, Any] = {"timeout": _CONNECT_SECONDS, "command_timeout": _COMMAND_SECONDS}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in _OWN:
            kept.append((name, value))
        elif name in _SETTINGS:
            settings[name] = value
        elif name == "connect_timeout":
            connect["timeout"] = max(2.0, float(value)) if value.isdecimal() and int(value) else None
        elif value not in _DEFAULTS.get(name, ()):
            raise StoreError(
                f"the database {place} cannot be used: its URL has `{name}={value}`, which is not known here"
            )
    dsn = parts._replace(query=urlencode(kept, quote_via=quote)).geturl()
    return Arguments({**connect, "dsn": dsn, "server_settings": settings}, place)
