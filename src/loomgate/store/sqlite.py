"""SQLite, the embedded engine: one file, one connection that writes and one that reads.

What must live here: all that knows SQLite's driver. What must not: tables or verbs.

Nothing in a transaction really suspends here, so it is run to its end in one go on the event loop, which costs no
thread switch. Only the commit, which waits for the disk, goes to a thread; transactions that arrive meanwhile share
the next commit, each in its own savepoint, and nobody is answered before the commit that holds their change is on disk
(docs/why/sqlite.md).
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

import apsw
from sqlalchemy.dialects import sqlite

from loomgate.errors import StoreError
from loomgate.store.database import Row, Statement, Work

T = TypeVar("T")


class Connection(Protocol):
    """The part of an apsw connection that is used here, with the types that its stubs leave open."""

    @property
    def in_transaction(self) -> bool: ...  # noqa: D102
    def execute(self, sql: str, bindings: Any = None) -> Any: ...  # noqa: D102
    def executemany(self, sql: str, bindings: Any) -> Any: ...  # noqa: D102
    def changes(self) -> int: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


def connect(path: Path) -> Connection:
    """Open the SQLite file ``path`` (made when missing), waiting for another process's lock for a while."""
    connection = apsw.Connection(str(path), statementcachesize=200)
    connection.set_busy_timeout(_BUSY_MS)
    return cast(Connection, connection)


DIALECT = sqlite.dialect(paramstyle="named")
_BATCH = 64  # transactions in one commit: bounds how long the event loop is held
# KB of pages that the two connections remember. What is written is new or was read a moment ago, so the writer fills
# whatever it gets and gains nothing by it.
_WRITER_KB = 4_000
_READER_KB = 16_000
_WAL_TRIES = 100
_BUSY_MS = 5_000  # how long another process (a command line) may hold the write lock


def use_wal(connection: Connection) -> None:
    """Switch the file to WAL, which it then stays in. Another process that does so at this moment is waited for: SQLite
    answers "busy" to this statement at once, whatever the busy timeout."""
    for left in reversed(range(_WAL_TRIES)):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except apsw.BusyError:
            if not left:
                raise
            threading.Event().wait(_BUSY_MS / 1000 / _WAL_TRIES)


class _Tx:
    """An open transaction. Its methods are ``async`` for the sake of the engine that answers over a network."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def then(self, what: Callable[[], None]) -> None:
        """Call ``what`` now: a write that begins from now on comes after this one."""
        what()

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """All rows of ``statement`` with ``params`` bound by name."""
        made = statement.compiled(DIALECT)
        return self._connection.execute(made.sql, made.given(params)).fetchall()

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of ``statement``, or ``None``."""
        found = await self.rows(statement, **params)
        return found[0] if found else None

    async def run(self, statement: Statement, **params: Any) -> int:
        """Execute a statement that returns no rows; answers how many rows it changed."""
        made = statement.compiled(DIALECT)
        self._connection.execute(made.sql, made.given(params))
        return self._connection.changes()

    async def insert(self, statement: Statement, rows: list[dict[str, Any]]) -> None:
        """Execute an INSERT once for each of ``rows``."""
        if rows:
            self._connection.executemany(statement.compiled(DIALECT).sql, rows)


class _Job:
    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Work[Any], future: "asyncio.Future[Any]") -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


def _finish(awaitable: Awaitable[T]) -> T:
    """Run a coroutine that never suspends to its end and give its result."""
    step = awaitable.__await__()
    try:
        next(step)
    except StopIteration as stop:
        return stop.value
    step.close()  # its own clean-up runs now, inside the transaction, and not whenever it is collected
    raise StoreError("a transaction waited for something other than its database")


class SqliteDatabase:
    """A `Database` in one file, WAL: one connection that writes, one that reads; both belong to one event loop."""

    def __init__(self, path: Path, *, synchronous: Literal["full", "normal"] = "full") -> None:
        """Open ``path`` (made when missing). Raises `StoreError` when it cannot be opened as a database."""
        self._path = path
        try:
            self._writer = self._connect(path, synchronous, _WRITER_KB)
            self._reader = self._connect(path, synchronous, _READER_KB)
            self._reader.execute("PRAGMA query_only = 1")
        except apsw.Error as error:
            raise StoreError(f"cannot open the database {path}: {error}") from None
        self._read_tx = _Tx(self._reader)
        self._write_tx = _Tx(self._writer)
        self._jobs: deque[_Job] = deque()
        self._busy = False
        self._idle: asyncio.Event | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="loomgate-commit")

    @staticmethod
    def _connect(path: Path, synchronous: str, cache: int) -> Connection:
        connection = connect(path)
        use_wal(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = -{cache}")
        connection.execute("PRAGMA temp_store = MEMORY")
        return connection

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on a consistent snapshot. It must be bounded: by a key, or by a page's limit."""
        self._reader.execute("BEGIN")
        try:
            return _finish(work(self._read_tx))
        finally:
            self._reader.execute("COMMIT")

    async def look(self, work: Work[T]) -> T:
        """Like `read`, without the snapshot: each statement sees the newest commit. For what stays right then, such as
        a page, whose elements come from one statement and whose cursors never change."""
        return _finish(work(self._read_tx))

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """The rows of one reading statement."""
        return _finish(self._read_tx.rows(statement, **params))

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of one reading statement, or ``None``."""
        return _finish(self._read_tx.row(statement, **params))

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction of its own and answer once it is on disk.

        What ``work`` raises is raised here and nothing of it is kept; the other transactions of the same commit
        are not touched. Raises `StoreError` when the commit itself fails. A caller that is cancelled does not
        take its transaction back: it may have been committed.
        """
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future())
        self._jobs.append(job)
        if not self._busy:
            self._busy = True
            loop.call_soon(self._batch, loop)
        return await job.future

    def _batch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the waiting transactions and hand their common commit to the disk thread."""
        batch = [self._jobs.popleft() for _ in range(min(len(self._jobs), _BATCH))]
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except apsw.Error as error:
            self._answer(loop, batch, StoreError(f"the database {self._path} refuses to write: {error}"))
            return
        for job in batch:
            try:
                self._attempt(job)
            except apsw.Error as error:  # a savepoint itself failed: nothing of this batch can be told apart any more
                job.error = job.error or error
                self._undo()
            if not self._writer.in_transaction:
                # The engine rolled everything back by itself (disk full, I/O error): nothing of this batch stands.
                self._answer(loop, batch, StoreError(f"the database gave the transaction up: {job.error}"))
                return
        loop.run_in_executor(self._disk, self._commit).add_done_callback(
            lambda done: self._answer(loop, batch, done.result())
        )

    def _attempt(self, job: _Job) -> None:
        self._writer.execute("SAVEPOINT job")
        try:
            job.result = _finish(job.work(self._write_tx))
        except BaseException as error:
            if isinstance(error, apsw.Error):
                # Disk full, file read-only, …: an error that the rooms above know, and after which they try again.
                error = StoreError(f"the database {self._path} refuses to write: {error}")
            job.error = error
            if not self._writer.in_transaction:
                return
            self._writer.execute("ROLLBACK TO job")
        self._writer.execute("RELEASE job")

    def _commit(self) -> StoreError | None:
        try:
            self._writer.execute("COMMIT")
        except apsw.Error as error:
            self._undo()
            return StoreError(f"the database could not commit: {error}")
        return None

    def _undo(self) -> None:
        with suppress(apsw.Error):
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")

    def _answer(self, loop: asyncio.AbstractEventLoop, batch: list[_Job], failure: StoreError | None) -> None:
        """Wake the callers of ``batch``, and begin the next one."""
        for job in batch:
            error = job.error or failure
            if job.future.cancelled():
                continue
            if error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(error)
        if self._jobs:
            # After the answered callers have had their turn: what they write next joins this commit.
            loop.call_soon(self._batch, loop)
        else:
            self._busy = False
            if self._idle is not None:
                self._idle.set()

    async def close(self) -> None:
        """Wait for the writes under way, then close. Nothing may be written afterwards."""
        if self._busy:
            self._idle = asyncio.Event()
            await self._idle.wait()
        self._disk.shutdown()
        self._reader.close()
        self._writer.close()
