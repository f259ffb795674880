"""An embedded installation moved to PostgreSQL: all rows of the file, in batches by key, and compared at the end.

What must live here: which rows are still to be copied, and what makes source and target equal. What must not: words
for people (``cli``). Each batch goes in one transaction with the note of how far it got, so a copy that was cut off at
any moment goes on where it was. Until the end the target has no revision that a node would start with.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg.exceptions as pg
import msgspec
import sqlalchemy as sa

from loomgate.errors import StoreError
from loomgate.store import schema, tables
from loomgate.store.dsn import arguments
from loomgate.store.postgres import BROKEN, escaped, unescaped
from loomgate.store.seal import KEY_FILE
from loomgate.store.sqlite import Connection
from loomgate.store.sqlite import connect as connect_file

_ROWS, _BYTES = 2_000, 8 * 1024 * 1024  # of one batch, at most (but always a row)
_FILE = "loomgate.db"
_PROGRESS = """
CREATE TABLE copying (
    name TEXT PRIMARY KEY, wanted BIGINT NOT NULL, sum TEXT NOT NULL, copied BIGINT NOT NULL, last TEXT
)
"""
_ALL = [table for table in tables.metadata.sorted_tables if table is not tables.writers]

# Told of what goes on: what is being done, a table, rows done, rows in all.
Told = Callable[[str, str, int, int], None]


class Compared(msgspec.Struct, frozen=True):
    """A table in the end: how many rows each side has, and whether they are the same."""

    table: str
    source: int
    target: int
    same: bool


def _key(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _source_rows(connection: Connection, table: sa.Table, after: list[Any] | None) -> Iterator[tuple[Any, ...]]:
    """The rows of ``table`` in the order of their keys, those after the key ``after``."""
    key = ", ".join(f'"{name}"' for name in _key(table))
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    marks = ", ".join("?" * len(_key(table)))
    where = f"WHERE ({key}) > ({marks})" if after is not None else ""
    yield from connection.execute(f"SELECT {columns} FROM {table.name} {where} ORDER BY {key}", after or ())  # noqa: S608


class _Sum:
    """A checksum of rows, whatever their order, and how many there are."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, row: tuple[Any, ...]) -> None:
        plain = [value.hex() if isinstance(value, bytes) else [value] for value in row]
        digest = hashlib.blake2b(msgspec.json.encode(plain), digest_size=16).digest()
        self._sum = (self._sum + int.from_bytes(digest, "big")) % (1 << 128)
        self.rows += 1

    @property
    def hex(self) -> str:
        return f"{self._sum:032x}"


def _plain(row: tuple[Any, ...], table: sa.Table) -> tuple[Any, ...]:
    """``row`` of the file with the types that PostgreSQL has for its columns."""
    return tuple(
        bool(value) if isinstance(column.type, sa.Boolean) else value
        for value, column in zip(row, table.columns, strict=True)
    )


def _file(folder: Path) -> Path:
    path = folder / _FILE if folder.is_dir() else folder
    if not path.is_file():
        raise StoreError(f"there is no database {path}")
    return path


async def copy(folder: Path, url: str, told: Told) -> list[Compared]:
    """Copy the embedded installation in ``folder`` into the PostgreSQL database of ``url``, which has to be empty or
    that of an earlier copy that did not come to its end.

    Answers what is on each side then; the target can only be used if all is the same. Raises `StoreError`.
    """
    from loomgate.store import lock

    path = _file(folder)
    held = lock(path)
    try:
        if (found := schema.revision(path)) != schema.HEAD:
            raise StoreError(
                f"the database {path} is at revision {found}, this version copies {schema.HEAD}: run"
                f" `loomgate migrate --data {folder}` first"
            )
        source = connect_file(path)
        try:
            source.execute("BEGIN")  # one state of it, whatever a command line does meanwhile
            given = arguments(url)
            try:
                async with schema.altering(given) as target:
                    return await _copy(source, path, target, given.place, told)
            except (*BROKEN, pg.PostgresError) as error:
                words = " ".join(str(error).split()) or type(error).__name__
                raise StoreError(f"the copy into {given.place} stopped: {words}; run it again to go on") from None
        finally:
            source.close()
    finally:
        os.close(held)


async def _copy(source: Connection, path: Path, target: Any, place: str, told: Told) -> list[Compared]:
    wanted = {table.name: _Sum() for table in _ALL}
    for table in _ALL:
        for row in _source_rows(source, table, None):
            wanted[table.name].add(_plain(row, table))
            if wanted[table.name].rows % _ROWS == 0:
                told("reading", table.name, wanted[table.name].rows, 0)
    await _prepare(target, place, wanted, path)
    for table in _ALL:
        await _copy_table(source, target, table, wanted[table.name].rows, told)
    compared: list[Compared] = []
    for table in _ALL:
        sum = await _target_sum(target, table, wanted[table.name].rows, told)
        one = wanted[table.name]
        compared.append(Compared(table.name, one.rows, sum.rows, (one.rows, one.hex) == (sum.rows, sum.hex)))
    if all(one.same for one in compared):
        async with target.transaction():
            await target.execute("DROP TABLE copying")
            await target.execute("UPDATE alembic_version SET version_num = $1", schema.HEAD)
        await target.execute("ANALYZE")  # or the planner takes every table for an empty one
    return compared


async def _prepare(target: Any, place: str, wanted: dict[str, _Sum], path: Path) -> None:
    """Make the tables and the notes of progress, or see that those of an earlier copy are about the same rows."""
    found = await schema.revision_in(target)
    if found == schema.COPYING:
        notes = {row[0]: (row[1], row[2]) for row in await target.fetch("SELECT name, wanted, sum FROM copying")}
        if notes != {name: (sum.rows, sum.hex) for name, sum in wanted.items()}:
            raise StoreError(
                f"the database {place} has part of a copy of something else, or {path} has changed since: make the"
                " database anew and copy again"
            )
        return
    if found == schema.HEAD:
        for table in tables.metadata.sorted_tables:
            if await target.fetchval(f"SELECT EXISTS (SELECT FROM {table.name})"):  # noqa: S608 - a name of ours
                raise StoreError(f"the database {place} is not empty (it has rows in {table.name}): nothing is copied")
    elif found is not None:
        raise StoreError(f"the database {place} is at revision {found}: copy into an empty one")
    async with target.transaction():
        if found is None:
            await schema.create_in(target, schema.COPYING)
        await target.execute("UPDATE alembic_version SET version_num = $1", schema.COPYING)
        await target.execute(_PROGRESS)
        for name, sum in wanted.items():
            await target.execute("INSERT INTO copying VALUES ($1, $2, $3, 0, NULL)", name, sum.rows, sum.hex)


async def _copy_table(source: Connection, target: Any, table: sa.Table, rows: int, told: Told) -> None:
    columns = [column.name for column in table.columns]
    key = [columns.index(name) for name in _key(table)]
    copied, last = await target.fetchrow("SELECT copied, last FROM copying WHERE name = $1", table.name)
    if copied == rows:
        return
    batch: list[tuple[Any, ...]] = []
    size = 0

    async def flush() -> None:
        nonlocal copied, size
        mark = msgspec.json.encode([batch[-1][at] for at in key]).decode()
        async with target.transaction():
            await target.copy_records_to_table(
                table.name,
                records=[tuple(escaped(one) if isinstance(one, str) else one for one in row) for row in batch],
                columns=columns,
            )
            copied += len(batch)
            await target.execute("UPDATE copying SET copied = $2, last = $3 WHERE name = $1", table.name, copied, mark)
        batch.clear()
        size = 0
        told("copying", table.name, copied, rows)

    for row in _source_rows(source, table, None if last is None else msgspec.json.decode(last)):
        batch.append(_plain(row, table))
        size += sum(len(one) for one in row if isinstance(one, bytes))
        if len(batch) >= _ROWS or size >= _BYTES:
            await flush()
    if batch:
        await flush()


async def _target_sum(target: Any, table: sa.Table, rows: int, told: Told) -> _Sum:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    found = _Sum()
    async with target.transaction(isolation="repeatable_read", readonly=True):
        async for row in target.cursor(f"SELECT {columns} FROM {table.name}", prefetch=500):  # noqa: S608
            found.add(tuple(unescaped(one) if isinstance(one, str) else one for one in row))
            if found.rows % _ROWS == 0:
                told("comparing", table.name, found.rows, rows)
    return found


def seal_key_file(folder: Path) -> Path | None:
    """The file with the key that the copied secrets are sealed with, if ``folder`` has one."""
    path = (folder if folder.is_dir() else folder.parent) / KEY_FILE
    return path if path.is_file() else None
