"""The schema's versions on PostgreSQL: one tree of migrations for both engines, and upgrades while older nodes work."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.support.engines import Databases
from tests.support.objects import WORKSPACE, make_message, make_run, make_thread

from loomgate import clock
from loomgate.errors import StoreError
from loomgate.store import Store, schema
from loomgate.store.dsn import arguments
from loomgate.store.postgres import PostgresDatabase
from loomgate.store.records import Commit
from loomgate.store.seal import Sealer
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import RunSpec

pytestmark = pytest.mark.anyio

NEWEST = schema.HEAD
# What an additive change may do: a column with a default, an index.
NEXT = f'''"""Notes on threads, for a test."""

import sqlalchemy as sa
from alembic import op

from loomgate.store.migrations import TEXT, add_index

revision = "9000"
down_revision = "{NEWEST}"


def upgrade() -> None:
    op.add_column("threads", sa.Column("note", TEXT, nullable=False, server_default="none"))
    op.add_column("runs", sa.Column("weight", sa.BigInteger()))
    add_index("ix_threads_note", "threads", ["workspace", "note"])
'''

_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, coalesce(k.collname, ''),
    coalesce(pg_get_expr(d.adbin, d.adrelid), ''), a.attnum
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_collation k ON k.oid = a.attcollation
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND c.relname <> 'alembic_version'
ORDER BY c.relname, a.attnum
"""
_INDEXES = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version' ORDER BY 1"
_CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND conrelid <> 'alembic_version'::regclass ORDER BY 1, 2
"""


@pytest.fixture
async def empty(databases: Databases) -> AsyncIterator[str]:
    url = await databases.empty()
    yield url
    await databases.drop(url)


@pytest.fixture
async def ready(databases: Databases) -> AsyncIterator[str]:
    url = await databases.ready()
    yield url
    await databases.drop(url)


async def query(url: str, sql: str, *params: object) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql, *params)]
    finally:
        await connection.close()


async def shape(url: str) -> list[list[tuple[Any, ...]]]:
    return [await query(url, sql) for sql in (_COLUMNS, _INDEXES, _CONSTRAINTS)]


async def stamp(url: str, revision: str) -> None:
    await query(url, "UPDATE alembic_version SET version_num = $1", revision)


@pytest.fixture
def add_migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on this version is one that has a migration more."""

    def add(text: str) -> None:
        scripts = tmp_path / "migrations"
        shutil.copytree(Path(schema.__file__).parent / "migrations", scripts)
        (scripts / "versions" / "9000_notes.py").write_text(text)
        real = schema.alembic_config

        def config(path: Path | None) -> object:
            made = real(path)
            made.set_main_option("script_location", str(scripts))
            return made

        monkeypatch.setattr(schema, "alembic_config", config)
        monkeypatch.setattr(schema, "HEAD", "9000")

    return add


async def test_migrations_lead_to_the_tables_that_are_created(empty: str, ready: str) -> None:
    await query(
        empty,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY)",
    )
    await schema._migrate_postgres(arguments(empty))
    migrated, created = await shape(empty), await shape(ready)
    for found, wanted in zip(migrated, created, strict=True):
        assert found == wanted
    texts = {row[4] for row in created[0] if row[2] == "text"}
    assert texts == {"C"}, "texts are compared by their bytes"
    assert await query(empty, "SELECT version_num FROM alembic_version") == [(schema.HEAD,)]


async def test_rows_of_the_first_version_are_kept(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await query(empty, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    with monkeypatch.context() as at_first:
        at_first.setattr(schema, "HEAD", "0001")
        await schema._migrate_postgres(arguments(empty))
    await query(empty, "INSERT INTO api_keys VALUES ('key_1', 'w', 'n', 'd', 'h', 1, NULL)")
    await query(empty, "INSERT INTO virtual_keys VALUES ('w', 'slug', 'openai', NULL, 's', 7)")
    assert await schema.upgrade_postgres(empty) == ("0001", schema.HEAD)
    assert await query(empty, "SELECT id, role FROM api_keys") == [("key_1", "user")]
    ((id, *row),) = await query(empty, "SELECT id, name, about, updated_at FROM virtual_keys")
    assert row == ["slug", b'{"trusted": true}', 7]
    assert len(id) == 36


async def test_upgrading_is_done_once_and_two_at_once_agree(empty: str) -> None:
    both = await asyncio.gather(schema.upgrade_postgres(empty), schema.upgrade_postgres(empty))
    assert sorted(both, key=str) == [(schema.HEAD, schema.HEAD), (None, schema.HEAD)], "the second waited"
    await schema.check_postgres(empty)


async def test_a_database_of_another_version_is_refused_in_one_line(empty: str, ready: str) -> None:
    for url, revision, words in (
        (empty, None, "has no tables yet: run `loomgate migrate`"),
        (ready, "0002", f"is at revision 0002, this version needs {schema.HEAD}: run `loomgate migrate`"),
        (ready, "9999", r"was written by a newer version \(revision 9999\)"),
        (ready, schema.COPYING, "run the same `loomgate copy` again"),
    ):
        if revision is not None:
            await stamp(url, revision)
        with pytest.raises(StoreError, match=words) as caught:
            await schema.check_postgres(url)
        assert "\n" not in str(caught.value)
    for revision in ("9999", schema.COPYING):
        await stamp(ready, revision)
        with pytest.raises(StoreError, match=r"newer version|copy"):
            await schema.upgrade_postgres(ready)
        assert await query(ready, "SELECT version_num FROM alembic_version") == [(revision,)]


async def _story(store: Store) -> None:
    """About all that a node does with runs."""
    thread = make_thread()
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    for claimed in await store.runs.claim("w", 8, 15):
        await store.runs.renew([(claimed.run.id, claimed.row.fence)], 15)
        await store.runs.apply(claimed.row, Commit(verb="complete"))
    await store.runs.page(WORKSPACE, thread.id, PageQuery())
    await store.threads.page(WORKSPACE, PageQuery(), {})
    await store.threads.modify(WORKSPACE, thread.id, lambda found: found)
    other = make_thread()
    await store.threads.create(WORKSPACE, other, [])
    await store.threads.add_message(WORKSPACE, make_message(other.id))


async def test_an_older_node_works_on_while_and_after_the_tables_change(
    ready: str, add_migration: Callable[[str], None]
) -> None:
    database = await PostgresDatabase.open(ready, connections=4)
    old = Store(database, Sealer(bytes(32)), [], "reject")
    told = 0
    done = asyncio.Event()

    async def work() -> None:
        nonlocal told
        while not done.is_set():
            await _story(old)
            told += 1

    await _story(old)  # its statements are prepared
    working = [asyncio.create_task(work()) for _ in range(2)]
    add_migration(NEXT)
    assert await schema.upgrade_postgres(ready) == (NEWEST, "9000")
    before = told
    while told < before + 4:
        await _story(old)
    done.set()
    await asyncio.gather(*working)
    assert await query(ready, "SELECT DISTINCT note FROM threads") == [("none",)]
    (valid,) = await query(ready, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_threads_note'::regclass")
    assert valid == (True,)
    await database.close()


async def test_a_long_transaction_is_waited_for_without_holding_up_others(
    ready: str, add_migration: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_migration(NEXT)
    monkeypatch.setattr(schema, "_LOCK_SECONDS", 0.3)
    monkeypatch.setattr(schema, "_PAUSE", 0.3)
    database = await PostgresDatabase.open(ready, connections=2)
    store = Store(database, Sealer(bytes(32)), [], "reject")
    long = await asyncpg.connect(ready)
    await long.execute("BEGIN; SELECT count(*) FROM threads")  # its lock stops any ALTER TABLE
    upgrade = asyncio.create_task(schema.upgrade_postgres(ready))
    slowest, end = 0.0, clock.monotonic() + 1.5
    while clock.monotonic() < end:
        start = clock.monotonic()
        await store.threads.create(WORKSPACE, make_thread(), [])
        slowest = max(slowest, clock.monotonic() - start)
    assert not upgrade.done()
    assert slowest < 1.2, "no longer than one wait for the lock, and what it takes"
    await long.execute("ROLLBACK")
    await long.close()
    assert await upgrade == (NEWEST, "9000")
    await database.close()


async def test_an_index_that_was_left_half_made_is_made_anew(ready: str, add_migration: Callable[[str], None]) -> None:
    only_index = NEXT.replace('    op.add_column("threads"', '    0 and op.add_column("threads"').replace(
        '    op.add_column("runs"', '    0 and op.add_column("runs"'
    )
    add_migration(only_index.replace('["workspace", "note"]', '["workspace"], unique=True'))
    for n in range(2):
        await query(ready, "INSERT INTO threads VALUES ($1, 'same', $2, 0, 0, NULL, 'b')", f"t{n}", n)
    with pytest.raises(StoreError, match=r"cannot upgrade the database .*ix_threads_note") as caught:
        await schema.upgrade_postgres(ready)
    assert "\n" not in str(caught.value)
    invalid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_threads_note'::regclass"
    assert await query(ready, invalid) == [(False,)], "as it stays when such a statement fails"
    await query(ready, "DELETE FROM threads WHERE id = 't1'")
    assert await schema.upgrade_postgres(ready) == (NEWEST, "9000")
    assert await query(ready, invalid) == [(True,)]


async def test_half_a_migration_never_stays(ready: str, add_migration: Callable[[str], None]) -> None:
    before = await shape(ready)
    add_migration(
        NEXT.replace('add_index("ix_threads_note", "threads", ["workspace", "note"])', 'op.drop_table("missing")')
    )
    with pytest.raises(StoreError, match=r'cannot upgrade the database .*"missing" does not exist'):
        await schema.upgrade_postgres(ready)
    assert await shape(ready) == before
    await schema_is(ready, NEWEST)


async def schema_is(url: str, revision: str) -> None:
    assert await query(url, "SELECT version_num FROM alembic_version") == [(revision,)]


async def test_the_commands_say_what_to_type(empty: str, tmp_path: Path) -> None:
    environment = {**os.environ, "LOOMGATE_DATABASE_URL": empty, "LOOMGATE_SEAL_KEY": "0" * 64}

    async def run(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "loomgate", *words]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    code, _, said = await run("serve", "--port", "0")
    assert code == 1
    assert said.count("\n") == 1
    assert "has no tables yet: run `loomgate migrate`" in said
    assert await run("migrate") == (0, f"no database -> {schema.HEAD}\n", "")
    assert await run("migrate") == (0, f"already at {schema.HEAD}\n", "")
