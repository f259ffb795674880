"""The engine for PostgreSQL: every acknowledged write is there once, whatever becomes of server and callers."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from tests.support.engines import Databases, PostgresServer, folder

from loomgate import clock
from loomgate.errors import StoreBusy, StoreError
from loomgate.store.database import Statement, Tx
from loomgate.store.postgres import PostgresDatabase, escaped, unescaped

pytestmark = pytest.mark.anyio

_META = sa.MetaData()
_T = sa.Table("t", _META, sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("note", sa.Text))
_key: Any = sa.bindparam("key")
ADD = Statement(sa.insert(_T))
ALL = Statement(sa.select(_T.c.id).order_by(_T.c.id))
NOTE = Statement(sa.select(_T.c.note).where(_T.c.id == _key))
LOCKED = Statement(sa.select(_T.c.id).where(_T.c.id == _key).with_for_update())
COUNT = Statement(
    sa.update(_T).where(_T.c.id == _key).values(id=_T.c.id, note=sa.cast(sa.cast(_T.c.note, sa.Integer) + 1, sa.Text))
)
SLEEP = Statement(sa.select(sa.func.pg_sleep(sa.bindparam("seconds", type_=sa.Double))))
_TABLE = """
CREATE TABLE t (id BIGINT PRIMARY KEY, note TEXT);
CREATE TABLE IF NOT EXISTS writers (id TEXT PRIMARY KEY, number BIGINT, at BIGINT)
"""


def _add(id: int) -> Any:
    return lambda tx: tx.run(ADD, id=id, note="n")


async def _ids(database: PostgresDatabase) -> list[int]:
    return [row[0] for row in await database.rows(ALL)]


@pytest.fixture
async def url(databases: Databases) -> AsyncIterator[str]:
    url = await databases.empty()
    connection = await asyncpg.connect(url)
    await connection.execute(_TABLE)
    await connection.close()
    yield url
    await databases.drop(url)


@pytest.fixture
async def database(url: str) -> AsyncIterator[PostgresDatabase]:
    database = await PostgresDatabase.open(url, connections=4)
    yield database
    await database.close()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that tests may stop."""
    with folder() as place:
        # Commits are on disk before they are answered, as nobody would have it otherwise.
        server = PostgresServer(place, {"fsync": "on", "max_connections": "60"})
        server.start()
        yield server
        server.stop(signal.SIGQUIT)


async def test_a_saturated_pool_is_busy_and_does_not_hang(url: str) -> None:
    database = await PostgresDatabase.open(url, connections=2, wait_seconds=0.2)
    asleep = [asyncio.create_task(database.rows(SLEEP, seconds=0.8)) for _ in range(2)]
    await asyncio.sleep(0.1)
    for work in (
        lambda: database.rows(ALL),
        lambda: database.write(_add(1)),
        lambda: database.read(lambda tx: tx.rows(ALL)),
    ):
        with pytest.raises(StoreBusy, match="no connection within"):
            await work()
    await asyncio.gather(*asleep)
    assert await _ids(database) == [], "and what was refused is not done later"
    await database.close()


async def test_what_a_work_raises_undoes_it_alone(database: PostgresDatabase) -> None:
    async def fails(tx: Tx) -> None:
        await tx.run(ADD, id=2, note="n")
        raise ValueError("no")

    found = await asyncio.gather(database.write(_add(1)), database.write(fails), return_exceptions=True)
    assert isinstance(found[1], ValueError)
    assert await _ids(database) == [1]
    with pytest.raises(StoreError, match="refuses"):
        await database.write(_add(1))


async def test_an_error_that_a_work_passes_over_is_not_taken_for_success(database: PostgresDatabase) -> None:
    async def careless(tx: Tx) -> None:
        await tx.run(ADD, id=1, note="n")
        with suppress(asyncpg.UniqueViolationError):
            await tx.run(ADD, id=1, note="n")

    with pytest.raises(StoreError, match="took a transaction back"):
        await database.write(careless)
    assert await _ids(database) == []


async def test_a_cancelled_caller_takes_nothing_back_and_breaks_nothing(database: PostgresDatabase) -> None:
    for round in range(20):
        write = asyncio.create_task(database.write(_add(round)))
        read = asyncio.create_task(database.rows(SLEEP, seconds=0.05))
        await asyncio.sleep(0.001 * round)
        for task in (write, read):
            task.cancel()
        for ended in await asyncio.gather(write, read, return_exceptions=True):
            assert isinstance(ended, asyncio.CancelledError | int)
    await database.write(_add(100))
    await asyncio.gather(*database._running)
    found = await _ids(database)
    assert found[-1] == 100
    # A task that is cancelled before its first step has not begun to write.
    assert set(range(2, 20)) <= set(found)


async def test_closing_waits_for_writes_and_then_refuses_them(url: str) -> None:
    database = await PostgresDatabase.open(url, connections=2)
    writes = [asyncio.create_task(database.write(_add(id))) for id in range(50)]
    await asyncio.sleep(0)
    await database.close()
    await asyncio.gather(*writes)
    for late in (database.write(_add(99)), database.rows(ALL)):
        with pytest.raises(StoreError):
            await asyncio.wait_for(late, 1)
    again = await PostgresDatabase.open(url, connections=1)
    assert await _ids(again) == list(range(50))
    await again.close()


async def test_a_reader_sees_one_state_and_cannot_write(database: PostgresDatabase) -> None:
    await database.write(_add(1))

    async def looks(tx: Tx) -> tuple[int, int]:
        before = len(await tx.rows(ALL))
        await database.write(_add(2))
        return before, len(await tx.rows(ALL))

    assert await database.read(looks) == (1, 1)
    with pytest.raises(StoreError, match="read-only"):
        await asyncio.wait_for(_short(database).read(lambda tx: tx.run(ADD, id=3, note="n")), 5)
    assert await _ids(database) == [1, 2]


def _short(database: PostgresDatabase) -> PostgresDatabase:
    database._retry = 0.1
    return database


async def test_a_deadlock_is_tried_again(url: str) -> None:
    database = await PostgresDatabase.open(f"{url}?options=-c%20deadlock_timeout%3D20ms", connections=4)
    await database.write(lambda tx: tx.insert(ADD, [{"id": 1, "note": "0"}, {"id": 2, "note": "0"}]))

    def both(first: int, second: int) -> Any:
        async def work(tx: Tx) -> None:
            await tx.run(COUNT, key=first)
            await tx.rows(SLEEP, seconds=0.05)
            await tx.run(COUNT, key=second)

        return work

    await asyncio.gather(database.write(both(1, 2)), database.write(both(2, 1)))
    assert [await database.row(NOTE, key=key) for key in (1, 2)] == [("2",), ("2",)]
    await database.close()


async def test_a_table_that_changed_under_a_prepared_statement_is_no_failure(
    database: PostgresDatabase, url: str
) -> None:
    star = Statement(sa.text("SELECT * FROM t").columns(_T.c.id, _T.c.note))
    await database.write(_add(1))

    async def reads(tx: Tx) -> int:
        return len(await tx.rows(star))

    assert await database.write(reads) == 1
    other = await asyncpg.connect(url)
    await other.execute("ALTER TABLE t ADD COLUMN more TEXT")
    await other.close()
    assert await database.write(reads) == 1
    assert await database.read(reads) == 1


async def test_texts_hold_whatever_a_client_sends(database: PostgresDatabase) -> None:
    texts = ["", "\0", "a\0b\0", "\ufdd0", "\ufdd01", "\ufdd00", "\0\ufdd0\0", "\U0001f600\0", "plain"]
    await database.write(lambda tx: tx.insert(ADD, [{"id": n, "note": text} for n, text in enumerate(texts)]))
    for n, text in enumerate(texts):
        assert await database.row(NOTE, key=n) == (text,)
    assert len({escaped(text) for text in texts}) == len(texts)
    assert all(unescaped(escaped(text)) == text for text in texts)


async def _counter(database: PostgresDatabase, key: int) -> int:
    row = await database.row(NOTE, key=key)
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast-shutdown", "crash"])
async def test_every_acknowledged_write_is_there_once_whatever_the_server_does(
    server: PostgresServer, how: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "asyncio")
    admin = await asyncpg.connect(server.url())
    await admin.execute("DROP TABLE IF EXISTS t")
    await admin.execute(_TABLE)
    await admin.execute("INSERT INTO t VALUES (1, '0'), (2, '0'), (3, '0')")
    await admin.close()
    databases = [await PostgresDatabase.open(server.url(), connections=6, retry_seconds=20) for _ in range(2)]
    acknowledged = {1: 0, 2: 0, 3: 0}
    unsure = 0
    done = asyncio.Event()

    async def writes(database: PostgresDatabase, key: int) -> None:
        nonlocal unsure
        while not done.is_set():
            try:
                await database.write(lambda tx: tx.run(COUNT, key=key))
                acknowledged[key] += 1
            except StoreError:
                unsure += 1

    async def reads(database: PostgresDatabase) -> None:
        while not done.is_set():
            assert len(await database.read(lambda tx: tx.rows(ALL))) == 3

    tasks = [asyncio.create_task(writes(database, key)) for database in databases for key in (1, 2, 3)]
    tasks += [asyncio.create_task(reads(database)) for database in databases]
    for _ in range(3):
        await asyncio.sleep(0.4)
        await asyncio.to_thread(server.stop, how)
        await asyncio.to_thread(server.start)
    before = sum(acknowledged.values())
    await asyncio.sleep(0.3)
    done.set()
    await asyncio.gather(*tasks)
    assert unsure == 0, "each was tried until it was known"
    assert {key: await _counter(databases[0], key) for key in acknowledged} == acknowledged
    assert sum(acknowledged.values()) > before > 30
    for database in databases:
        await database.close()


async def test_a_connection_that_breaks_in_the_middle_of_a_commit_is_asked_about(
    database: PostgresDatabase, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a COMMIT gets lost: once after the server carried it out, once before."""
    execute = asyncpg.Connection.execute
    for carried_out, key in ((True, 1), (False, 2)):
        await database.write(lambda tx, key=key: tx.run(ADD, id=key, note="0"))
        broken = 0

        async def lossy(self: Any, query: str, *args: Any, carried_out: bool = carried_out, **options: Any) -> str:
            nonlocal broken
            if query == "COMMIT" and not broken:
                broken += 1
                if carried_out:
                    await execute(self, query, *args, **options)
                raise ConnectionResetError("the cable was pulled")
            return await execute(self, query, *args, **options)

        with monkeypatch.context() as during:
            during.setattr(asyncpg.Connection, "execute", lossy)
            await database.write(lambda tx, key=key: tx.run(COUNT, key=key))
        assert broken == 1
        assert await _counter(database, key) == 1, f"carried out: {carried_out}"


async def test_a_server_that_is_away_is_an_error_in_time(server: PostgresServer) -> None:
    database = await PostgresDatabase.open(server.url(), connections=2, retry_seconds=0.5)
    server.stop(signal.SIGINT)
    try:
        start = clock.monotonic()
        with pytest.raises(StoreError, match="cannot be used"):
            await database.rows(ALL)
        with pytest.raises(StoreError, match="cannot be used"):
            await database.write(_add(1))
        assert clock.monotonic() - start < 4
    finally:
        server.start()
    assert isinstance(await _ids(database), list)
    await database.close()
