"""What an operator should know of a PostgreSQL before nodes use it: asked by `loomgate doctor`, which changes nothing.

What must live here: the questions. What must not: which answers are good.
"""

import asyncpg
import msgspec

from loomgate import clock
from loomgate.errors import StoreError
from loomgate.settings import decode_seal_key
from loomgate.store import schema
from loomgate.store.dsn import arguments
from loomgate.store.nodes import opens
from loomgate.store.postgres import connect
from loomgate.store.seal import Sealer

_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
_CONNECTIONS = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())"""
_VECTOR = """
    SELECT installed_version, default_version FROM pg_available_extensions WHERE name = 'vector'"""
_KEYS = "SELECT count(*), count(*) FILTER (WHERE revoked_at IS NULL) FROM api_keys"
_VIRTUAL_KEYS = "SELECT slug, provider FROM virtual_keys ORDER BY created_at, slug"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a server and the database on it.

    ``number`` is the version as PostgreSQL counts it (160004 is 16.4), ``ahead`` by how many seconds this host's clock
    is ahead. ``connections`` are those in use and the most there may be, ``vector`` is pgvector's version (``None``:
    the server does not have it). ``sealed`` tells whether the seal key opens what is there (``None``: nothing is).
    What is asked of the tables is empty unless ``revision`` is ``head``.
    """

    place: str
    version: str
    number: int
    ahead: float
    connections: tuple[int, int]
    vector: str | None
    revision: str | None
    head: str = schema.HEAD
    sealed: bool | None = None
    api_keys: tuple[int, int] = (0, 0)  # ever made, and in force
    virtual_keys: list[tuple[str, str]] = []  # slug, provider


async def look_at(url: str, seal_key: str) -> Facts:
    """The facts of the database at ``url``. Raises `StoreError` when it cannot be reached."""
    given = arguments(url)
    connection = await connect(given)
    try:
        before = clock.now()
        there = await connection.fetchval(_CLOCK)
        ahead = (before + clock.now()) / 2 - there
        most, used = await connection.fetchrow(_CONNECTIONS)
        vector = await connection.fetchrow(_VECTOR)
        facts = Facts(
            place=given.place,
            version=str(await connection.fetchval("SHOW server_version")).partition(" ")[0],
            number=int(await connection.fetchval("SHOW server_version_num")),
            ahead=ahead,
            connections=(used, most),
            vector=None if vector is None else str(vector[0] or vector[1]),
            revision=await schema.revision_in(connection),
        )
        if facts.revision != facts.head:
            return facts
        keys = await connection.fetchrow(_KEYS)
        return msgspec.structs.replace(
            facts,
            sealed=await opens(connection, Sealer(decode_seal_key(seal_key))) if seal_key else None,
            api_keys=(keys[0], keys[1]),
            virtual_keys=[(row[0], row[1]) for row in await connection.fetch(_VIRTUAL_KEYS)],
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreError(f"the database {given.place} cannot be used: {error}") from None
    finally:
        await connection.close()
