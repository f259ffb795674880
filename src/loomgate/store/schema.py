"""The schema's version: made whole in a new database, upgraded by Alembic in an old one.

A new database is created from ``tables.py`` and stamped with the newest revision, which needs no Alembic (start-up
stays short); a test holds that the migrations lead to the same tables. A SQLite file is upgraded by whoever opens it,
since one server uses it alone; PostgreSQL only by `upgrade_postgres`, while other nodes work (docs/why/migrations.md).
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from loomgate import clock
from loomgate.errors import StoreError
from loomgate.store import tables
from loomgate.store.sqlite import connect, use_wal

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

    from loomgate.store.dsn import Arguments

log = logging.getLogger(__name__)

HEAD = "0005"  # the newest revision in migrations/versions (a test compares)
COPYING = "copying"  # the revision of a PostgreSQL database that a copy is still being written into
_VERSIONED = "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"


def prepare(path: Path) -> None:
    """Make the database at ``path`` ready for this version: create it, upgrade it, or leave it. Raises `StoreError`."""
    if revision(path) != HEAD:
        upgrade(path)


def revision(path: Path) -> str | None:
    """The revision of the database at ``path``; ``None`` when it has no tables yet. Raises `StoreError`."""
    try:
        connection = connect(path)
        try:
            if not connection.execute(_VERSIONED).fetchall():
                return None
            found = connection.execute("SELECT version_num FROM alembic_version").fetchall()
            return str(found[0][0]) if found else None
        finally:
            connection.close()
    except apsw.Error as error:
        raise StoreError(f"cannot open the database {path}: {error}") from None


def upgrade(path: Path) -> tuple[str | None, str]:
    """Bring the database to `HEAD`; answers the revision before and after. Raises `StoreError`."""
    before = revision(path)
    if before is None:
        _create(path)
    elif before != HEAD:
        _migrate(path, before)
    return before, HEAD


def _definitions(dialect: Dialect) -> list[str]:
    """What makes the tables of this version in an empty database, stamped with its revision."""
    if dialect.name == "postgresql":
        tables.on_postgresql()
    made: list[str] = []
    for table in tables.metadata.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=dialect)))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            made.append(str(CreateIndex(index).compile(dialect=dialect)))
    made.append("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    made.append("INSERT INTO alembic_version VALUES ('" + HEAD + "')")  # noqa: S608 - a constant
    return made


def _create(path: Path) -> None:
    connection = connect(path)
    try:
        use_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute(_VERSIONED).fetchall():  # nobody else made it meanwhile
            for statement in _definitions(sqlite.dialect()):
                connection.execute(statement)
        connection.execute("COMMIT")
    except apsw.Error as error:
        raise StoreError(f"cannot create the database {path}: {error}") from None
    finally:
        connection.close()


def _migrate(path: Path, before: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(path)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if before not in known:
        raise _newer(str(path), before)
    try:
        command.upgrade(config, HEAD)
    except SQLAlchemyError as error:
        raise StoreError(f"cannot upgrade the database {path}: {error}") from None


def _newer(place: str, revision: str) -> StoreError:
    return StoreError(f"the database {place} was written by a newer version (revision {revision}): use that version")


def alembic_config(path: Path | None) -> "Config":
    """Alembic's configuration for the file at ``path``, or for a connection still to be given: the migrations ship
    inside the package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    if path is not None:
        config.attributes["url"] = f"sqlite:///{path}"
    return config


# --- PostgreSQL

_LOCK = 0x6C6F6F6D67617465  # whoever changes the tables holds this advisory lock: "loomgate"
# A statement may take long (it may make an index), and a lock is never waited for long: whoever waits for one on a
# table makes all others wait behind it, who want the table for a moment only.
_LOCK_SECONDS = 1.0
_PATIENCE = 120.0  # seconds in which locks are tried again
_PAUSE = 1.0
_NO_HURRY = {"statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0"}
_LOST = {"55P03", "40P01"}  # a lock that was not to be had, and a deadlock


async def create_postgres(url: str) -> None:
    """Make the tables in the empty PostgreSQL database of ``url``. Raises `StoreError`."""
    from loomgate.store.dsn import arguments

    async with altering(arguments(url)) as connection:
        await create_in(connection, HEAD)


async def create_in(connection: Any, revision: str) -> None:
    """Make the tables of this version over ``connection`` (asyncpg), stamped with ``revision``."""
    from loomgate.store.postgres import DIALECT

    async with connection.transaction():
        for statement in _definitions(DIALECT):
            await connection.execute(statement)
        await connection.execute("UPDATE alembic_version SET version_num = $1", revision)


@asynccontextmanager
async def altering(given: "Arguments") -> AsyncGenerator[Any, None]:
    """A connection (asyncpg) to change tables with, alone: a second one waits here for the first to close."""
    from loomgate.store.postgres import connect

    connection = await connect(given, patient=True, **_NO_HURRY)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        yield connection
    finally:
        await connection.close()


async def revision_in(connection: Any) -> str | None:
    """The revision of the database of ``connection`` (asyncpg); ``None`` when it has no tables yet."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    return await connection.fetchval("SELECT version_num FROM alembic_version")


async def check_postgres(url: str) -> None:
    """Raises `StoreError` (one line, with the command to type) unless the database of ``url`` has the tables of this
    version."""
    from loomgate.store.dsn import arguments
    from loomgate.store.postgres import connect

    given = arguments(url)
    connection = await connect(given)
    try:
        found = await revision_in(connection)
    finally:
        await connection.close()
    if found != HEAD:
        raise _unready(given.place, found)


def _unready(place: str, found: str | None) -> StoreError:
    if found is None:
        return StoreError(f"the database {place} has no tables yet: run `loomgate migrate`")
    if found == COPYING:
        return StoreError(f"the database {place} is not copied to its end: run the same `loomgate copy` again")
    from alembic.script import ScriptDirectory

    if found not in {script.revision for script in ScriptDirectory.from_config(alembic_config(None)).walk_revisions()}:
        return _newer(place, found)
    return StoreError(
        f"the database {place} is at revision {found}, this version needs {HEAD}: run `loomgate migrate`, while older"
        " nodes go on"
    )


async def upgrade_postgres(url: str) -> tuple[str | None, str]:
    """Bring the PostgreSQL database of ``url`` to `HEAD`, while nodes of the former version work on it.

    Of two at once the second waits, and finds nothing left to do. Answers the revision before and after. Raises
    `StoreError`.
    """
    from loomgate.store.dsn import arguments

    given = arguments(url)
    async with altering(given) as connection:
        before = await revision_in(connection)
        if before is None:
            await create_in(connection, HEAD)
        elif before != HEAD:
            unready = _unready(given.place, before)
            if "loomgate migrate" not in str(unready):
                raise unready
            await _migrate_postgres(given)
    return before, HEAD


async def _migrate_postgres(given: "Arguments") -> None:
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    from loomgate.store.postgres import connect

    def opened() -> Any:
        patient = {**_NO_HURRY, "lock_timeout": str(int(_LOCK_SECONDS * 1000))}
        return connect(given, patient=True, **patient)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=opened, poolclass=NullPool)
    end = clock.monotonic() + _PATIENCE
    try:
        while True:
            try:
                async with engine.connect() as connection:
                    await connection.run_sync(_apply)
                return
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _LOST or clock.monotonic() >= end:
                    raise
                log.warning("a table is in use by a long transaction; the upgrade tries again")
            await clock.sleep(_PAUSE)  # others have their turn; what is done so far stays done
    except SQLAlchemyError as error:
        words = " ".join(str(getattr(error, "orig", error)).split())
        raise StoreError(f"cannot upgrade the database {given.place}: {words}") from None
    finally:
        await engine.dispose()


def _apply(connection: "Connection") -> None:
    from alembic import command

    config = alembic_config(None)
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
