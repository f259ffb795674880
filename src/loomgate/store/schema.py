"""The schema's version: made whole in a new file, upgraded by Alembic in an old one.

A new database is created from ``tables.py`` and stamped with the newest revision, which needs no Alembic (start-up
stays short); a test holds that the migrations lead to the same tables.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import apsw
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from loomgate.errors import StoreError
from loomgate.store import tables
from loomgate.store.sqlite import connect, use_wal

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"  # the newest revision in migrations/versions (a test compares)
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
    made: list[str] = []
    for table in tables.metadata.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=dialect)))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            made.append(str(CreateIndex(index).compile(dialect=dialect)))
    made.append("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    made.append("INSERT INTO alembic_version VALUES ('" + HEAD + "')")  # noqa: S608 - a constant
    return made


async def create_postgres(url: str) -> None:
    """Make the tables in the empty PostgreSQL database of ``url``. Raises `StoreError`."""
    from loomgate.store.dsn import arguments
    from loomgate.store.postgres import DIALECT, connect

    connection = await connect(arguments(url))
    try:
        async with connection.transaction():
            for statement in _definitions(DIALECT):
                await connection.execute(statement)
    finally:
        await connection.close()


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
        raise StoreError(f"the database {path} was written by a newer version (revision {before}): use that version")
    try:
        command.upgrade(config, HEAD)
    except SQLAlchemyError as error:
        raise StoreError(f"cannot upgrade the database {path}: {error}") from None


def alembic_config(path: Path) -> "Config":
    """Alembic's configuration for the database at ``path``: the migrations ship inside the package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = f"sqlite:///{path}"
    return config
