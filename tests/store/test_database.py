"""Transactions share commits and nothing else; nobody is answered before what they wrote is on disk."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest
import sqlalchemy as sa

from loomgate.errors import StoreError
from loomgate.store.database import Database, Statement, Tx
from loomgate.store.sqlite import SqliteDatabase

pytestmark = pytest.mark.anyio

_META = sa.MetaData()
_T = sa.Table("t", _META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("note", sa.Text))
ADD = Statement(sa.insert(_T))
ALL = Statement(sa.select(_T.c.id).order_by(_T.c.id))
CLEAR = Statement(sa.update(_T).where(_T.c.id == sa.bindparam("key")).values(note=None))
NOTE = Statement(sa.select(_T.c.note).where(_T.c.id == sa.bindparam("key")))


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = SqliteDatabase(tmp_path / "t.db")
    database._writer.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, note TEXT)")
    yield database
    await database.close()


async def _ids(database: Database) -> list[int]:
    return [row[0] for row in await database.rows(ALL)]


def _add(id: int) -> object:
    return lambda tx: tx.run(ADD, id=id, note="n")


def _commits(database: Database) -> list[int]:
    """Grows by the number of transactions in each commit from now on."""
    sizes: list[int] = []
    commit, attempt = database._commit, database._attempt
    count = 0

    def counted(job: object) -> None:
        nonlocal count
        count += 1
        attempt(job)

    def noted() -> StoreError | None:
        nonlocal count
        sizes.append(count)
        count = 0
        return commit()

    database._attempt, database._commit = counted, noted  # type: ignore[method-assign,assignment]
    return sizes


async def test_writers_that_come_together_share_a_commit(database: Database) -> None:
    sizes = _commits(database)
    await asyncio.gather(*(database.write(_add(id)) for id in range(10)))
    assert await _ids(database) == list(range(10))
    assert sizes == [10]


async def test_a_commit_is_bounded(database: Database) -> None:
    sizes = _commits(database)
    await asyncio.gather(*(database.write(_add(id)) for id in range(150)))
    assert sum(sizes) == 150
    assert max(sizes) <= 64


async def test_a_failing_transaction_takes_nothing_with_it(database: Database) -> None:
    async def fails(tx: Tx) -> None:
        await tx.run(ADD, id=2, note="n")
        raise ValueError("no")

    sizes = _commits(database)
    found = await asyncio.gather(
        database.write(_add(1)), database.write(fails), database.write(_add(3)), return_exceptions=True
    )
    assert isinstance(found[1], ValueError)
    assert await _ids(database) == [1, 3]
    assert sizes == [3], "in one commit"


async def test_a_broken_constraint_undoes_its_transaction_alone(database: Database) -> None:
    async def twice(tx: Tx) -> None:
        await tx.run(ADD, id=2, note="n")
        await tx.run(ADD, id=1, note="n")

    found = await asyncio.gather(database.write(_add(1)), database.write(twice), return_exceptions=True)
    assert isinstance(found[1], StoreError)
    assert await _ids(database) == [1]


async def test_nobody_is_answered_before_the_commit(database: Database) -> None:
    order: list[str] = []
    commit = database._commit

    def noted() -> StoreError | None:
        assert not task.done()
        order.append("commit")
        return commit()

    database._commit = noted  # type: ignore[method-assign]
    task = asyncio.create_task(database.write(_add(1)))
    task.add_done_callback(lambda _: order.append("answer"))
    await task
    await asyncio.sleep(0)
    assert order == ["commit", "answer"]


async def test_a_commit_that_fails_is_told_to_all_of_it(database: Database) -> None:
    # A deferred constraint fails at COMMIT, as a full disk would.
    database._writer.execute("CREATE TABLE c (p INTEGER REFERENCES t(id) DEFERRABLE INITIALLY DEFERRED)")
    database._writer.execute("PRAGMA foreign_keys = 1")

    async def orphan(tx: Tx) -> None:
        tx._connection.execute("INSERT INTO c VALUES (99)")

    found = await asyncio.gather(database.write(_add(1)), database.write(orphan), return_exceptions=True)
    assert all(isinstance(error, StoreError) for error in found)
    assert await _ids(database) == []
    await database.write(_add(2))
    assert await _ids(database) == [2], "and the next one goes well"


async def test_a_savepoint_that_fails_hangs_nobody(database: Database) -> None:
    async def ends_the_transaction(tx: Tx) -> None:
        tx._connection.execute("RELEASE job")

    found = await asyncio.gather(database.write(_add(1)), database.write(ends_the_transaction), return_exceptions=True)
    assert isinstance(found[0], StoreError)
    assert isinstance(found[1], apsw.SQLError)
    assert await _ids(database) == []
    await database.write(_add(2))
    assert await _ids(database) == [2]


async def test_an_engine_that_gives_up_by_itself_is_told_to_all(database: Database) -> None:
    async def rolls_back(tx: Tx) -> None:
        tx._connection.execute("INSERT OR ROLLBACK INTO t VALUES (1, 'n')")

    found = await asyncio.gather(
        database.write(_add(1)), database.write(rolls_back), database.write(_add(3)), return_exceptions=True
    )
    assert isinstance(found[0], StoreError)
    assert isinstance(found[1], StoreError)
    assert isinstance(found[2], StoreError)
    assert await _ids(database) == []


async def test_work_that_waits_for_something_else_is_refused(database: Database) -> None:
    cleaned: list[bool] = []

    async def waits(tx: Tx) -> None:
        await tx.run(ADD, id=1, note="n")
        try:
            await asyncio.sleep(0)
        finally:
            cleaned.append(True)

    with pytest.raises(StoreError, match="waited for something other"):
        await database.write(waits)
    assert cleaned == [True], "it was closed, not left lying about"
    with pytest.raises(StoreError, match="waited for something other"):
        await database.read(lambda tx: asyncio.sleep(0))
    assert await _ids(database) == []


async def test_a_cancelled_caller_takes_nothing_back(database: Database) -> None:
    first = asyncio.create_task(database.write(_add(1)))
    second = asyncio.create_task(database.write(_add(2)))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert await _ids(database) == [1, 2]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_closing_waits_for_writes(tmp_path: Path) -> None:
    path = tmp_path / "closing.db"
    database = SqliteDatabase(path)
    database._writer.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, note TEXT)")
    writes = [asyncio.create_task(database.write(_add(id))) for id in range(100)]
    await asyncio.sleep(0)
    await database.close()
    await asyncio.gather(*writes)
    again = SqliteDatabase(path)
    assert len(await _ids(again)) == 100
    await again.close()


async def test_a_reader_sees_one_state(database: Database) -> None:
    await database.write(_add(1))

    async def looks(tx: Tx) -> tuple[int, int]:
        before = len(await tx.rows(ALL))
        database._writer.execute("INSERT INTO t VALUES (2, 'n')")
        return before, len(await tx.rows(ALL))

    assert await database.read(looks) == (1, 1)
    assert await _ids(database) == [1, 2]


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(apsw.ReadOnlyError):
        await database.read(lambda tx: tx.run(ADD, id=1, note="n"))


async def test_a_null_in_a_statement_is_written(database: Database) -> None:
    await database.write(_add(1))
    await database.write(lambda tx: tx.run(CLEAR, key=1))
    assert await database.row(NOTE, key=1) == (None,)


async def test_another_process_that_holds_the_lock_is_an_error_not_a_hang(database: Database, tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / "t.db"))
    other.execute("BEGIN IMMEDIATE")
    database._writer.set_busy_timeout(1)  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="refuses to write"):
        await database.write(_add(1))
    other.execute("ROLLBACK")
    other.close()
    await database.write(_add(1))
    assert await _ids(database) == [1]
