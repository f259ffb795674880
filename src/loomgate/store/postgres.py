"""PostgreSQL, the engine for more than one machine: a bounded pool of connections, and what to do when one breaks.

What must live here: all that knows PostgreSQL's driver. What must not: tables or verbs.

A transaction that lost against another (a deadlock, a serialization failure) or whose connection broke is run again.
When the break came in the middle of the commit itself, the server is asked what became of it, so that nothing is done
twice and nothing is taken for done that is not (docs/why/postgresql.md).
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar, cast

import asyncpg
import asyncpg.exceptions as pg
from sqlalchemy.dialects.postgresql.asyncpg import dialect as dialect_of_asyncpg

from loomgate import clock
from loomgate.errors import StoreAway, StoreBusy, StoreError
from loomgate.store.database import Compiled, Row, Statement, Work
from loomgate.store.dsn import Arguments, arguments

log = logging.getLogger(__name__)

T = TypeVar("T")

DIALECT = dialect_of_asyncpg()
_PAUSE = (0.02, 0.5)  # seconds between two attempts, growing from the first to the second
# What lost against somebody else and may win when it is done again.
_LOST = (pg.DeadlockDetectedError, pg.SerializationError, pg.LockNotAvailableError)
# What says that this connection is of no use any more, or that none can be had now.
_GONE = (
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    pg.PostgresConnectionError,
    pg.InterfaceError,
    pg.InternalClientError,
    pg.OperatorInterventionError,
    pg.IdleInTransactionSessionTimeoutError,
    pg.TransactionTimeoutError,
    pg.InsufficientResourcesError,
    pg.ReadOnlySQLTransactionError,  # what was the primary is one no more
)


class _Connection(Protocol):
    """The part of an asyncpg connection that is used here, with types."""

    async def fetch(self, query: str, *args: Any) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: Any) -> Row | None: ...
    async def fetchval(self, query: str, *args: Any) -> Any: ...
    async def execute(self, query: str, *args: Any) -> str: ...
    async def executemany(self, command: str, args: list[tuple[Any, ...]]) -> None: ...
    def terminate(self) -> None: ...
    def is_closed(self) -> bool: ...


async def connect(given: Arguments, *, patient: bool = False, **settings: str) -> Any:
    """One asyncpg connection outside any pool, with ``settings`` of the server's in place of the usual ones.

    ``patient``: its statements may take as long as they take. Raises `StoreError`.
    """
    arguments: dict[str, Any] = {**given.connect, "server_settings": {**given.connect["server_settings"], **settings}}
    if patient:
        arguments["command_timeout"] = None
    try:
        return await asyncpg.connect(**arguments)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    except (*_GONE, pg.PostgresError, ValueError) as error:
        raise StoreError(f"cannot open the database {given.place}: {_words(error)}") from None


class _Plain(asyncpg.Connection):
    """A connection that goes back to the pool as it is: nothing of ours is left on it that would have to be reset."""

    __slots__ = ()

    def get_reset_query(self) -> str:  # pyright: ignore[reportImplicitOverride]
        return ""


class _Unsure(Exception):
    """The connection broke in the middle of a commit of the transaction ``xid``."""

    def __init__(self, xid: str) -> None:
        super().__init__(xid)
        self.xid = xid


class _Tx:
    """An open transaction on a connection, or (`Database.look`) a connection without one."""

    __slots__ = ("_connection",)

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """All rows of ``statement`` with ``params`` bound by name."""
        made = statement.compiled(DIALECT)
        return await self._connection.fetch(made.sql, *_bound(made, params))

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of ``statement``, or ``None``."""
        made = statement.compiled(DIALECT)
        return await self._connection.fetchrow(made.sql, *_bound(made, params))

    async def run(self, statement: Statement, **params: Any) -> int:
        """Execute a statement that returns no rows; answers how many rows it changed."""
        made = statement.compiled(DIALECT)
        done = await self._connection.execute(made.sql, *_bound(made, params))
        return int(done.rpartition(" ")[2])

    async def insert(self, statement: Statement, rows: list[dict[str, Any]]) -> None:
        """Execute an INSERT once for each of ``rows``."""
        if rows:
            made = statement.compiled(DIALECT)
            if len(rows) == 1:
                await self._connection.execute(made.sql, *_bound(made, rows[0]))
            else:
                await self._connection.executemany(made.sql, [tuple(_bound(made, row)) for row in rows])


def _bound(made: Compiled, params: dict[str, Any]) -> list[Any]:
    if not made.defaults:
        return [params[name] for name in made.names]
    return [params[name] if name in params else made.defaults[name] for name in made.names]


class PostgresDatabase:
    """A `Database` on a PostgreSQL server. `open` makes one."""

    def __init__(self, pool: Any, place: str, *, wait_seconds: float, retry_seconds: float) -> None:
        self._pool = pool
        self._place = place
        self._wait = wait_seconds
        self._retry = retry_seconds
        self._writes: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(
        cls, url: str, *, connections: int, wait_seconds: float = 5.0, retry_seconds: float = 10.0
    ) -> "PostgresDatabase":
        """Connect to the server of ``url``, a libpq URI.

        ``connections``: the most that are open at a time; ``wait_seconds``: the longest wait for one of them, after
        which `StoreBusy` is raised; ``retry_seconds``: for how long a transaction is tried again while the server
        cannot be reached. Raises `StoreError`, which shows no password, when there is no such server.
        """
        given = arguments(url)
        try:
            pool = await asyncpg.create_pool(  # pyright: ignore[reportUnknownMemberType]
                **given.connect,
                min_size=1,
                max_size=connections,
                max_inactive_connection_lifetime=300.0,
                connection_class=_Plain,
                statement_cache_size=1024,
                max_cached_statement_lifetime=0,
            )
        except (*_GONE, pg.PostgresError, ValueError) as error:
            raise StoreError(f"cannot open the database {given.place}: {_words(error)}") from None
        return cls(pool, given.place, wait_seconds=wait_seconds, retry_seconds=retry_seconds)

    @property
    def place(self) -> str:
        """The server and database, without a secret."""
        return self._place

    @property
    def connections(self) -> tuple[int, int, int]:
        """How many connections are at work, how many are open besides, and the most there may be."""
        size, idle = int(self._pool.get_size()), int(self._pool.get_idle_size())
        return size - idle, idle, int(self._pool.get_max_size())

    async def read(self, work: Work[T]) -> T:
        """See `Database.read`."""

        async def once(connection: _Connection) -> T:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                return await work(_Tx(connection))
            finally:
                await connection.execute("ROLLBACK")

        return await self._again(once)

    async def look(self, work: Work[T]) -> T:
        """See `Database.look`."""
        return await self._again(lambda connection: work(_Tx(connection)))

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """The rows of one reading statement."""
        return await self._again(lambda connection: _Tx(connection).rows(statement, **params))

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of one reading statement, or ``None``."""
        return await self._again(lambda connection: _Tx(connection).row(statement, **params))

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`."""
        # A task of its own: a caller that is cancelled would else break the connection off in the middle.
        task = asyncio.get_running_loop().create_task(self._write(work))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)
        return await asyncio.shield(task)

    async def _write(self, work: Work[T]) -> T:
        result: list[T] = []

        async def once(connection: _Connection) -> T:
            result.clear()
            await connection.execute("BEGIN")
            xid: str = await connection.fetchval("SELECT pg_current_xact_id()::text")
            try:
                result.append(await work(_Tx(connection)))
            except BaseException:
                with suppress(*_GONE):
                    await connection.execute("ROLLBACK")
                raise
            try:
                await connection.execute("COMMIT")
            except _GONE as error:
                raise _Unsure(xid) from error
            return result[0]

        end = clock.monotonic() + self._retry
        while True:
            try:
                return await self._again(once, end)
            except _Unsure as unsure:
                if await self._again(lambda connection, xid=unsure.xid: _committed(connection, xid), end):
                    return result[0]

    async def _again(self, once: Callable[[_Connection], Awaitable[T]], end: float | None = None) -> T:
        """What ``once`` gives on a connection; tried again until the time ``end`` when that breaks or loses."""
        end = clock.monotonic() + self._retry if end is None else end
        pause, most = _PAUSE
        while True:
            try:
                async with self._connection() as connection:
                    return await once(connection)
            except (*_LOST, *_GONE) as error:
                if isinstance(error, ValueError):  # a fault of ours: what was given does not fit its parameter
                    raise
                if clock.monotonic() + pause >= end:
                    raise StoreAway(f"the database {self._place} cannot be used: {_words(error)}") from None
                log.info("trying again at the database: %s", _words(error))
            except pg.PostgresError as error:
                raise StoreError(f"the database {self._place} refuses: {_words(error)}") from error
            await clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(most, pause * 2)

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[_Connection, None]:
        """A connection of our own for a while. Raises `StoreBusy`."""
        waited = asyncio.timeout(self._wait)
        try:
            async with waited:
                held = cast(_Connection, await self._pool.acquire())
        except TimeoutError:
            if waited.expired():
                raise StoreBusy(f"the database {self._place} is busy: no connection within {self._wait:g} s") from None
            raise
        try:
            yield held
        except BaseException as error:
            if isinstance(error, (*_GONE, _Unsure, asyncio.CancelledError, GeneratorExit)):
                held.terminate()  # whatever state it is in, nobody gets it again
            raise
        finally:
            with suppress(*_GONE):
                await self._pool.release(held)

    async def close(self) -> None:
        """See `Database.close`."""
        if self._writes:
            await asyncio.wait(self._writes)
        try:
            await asyncio.wait_for(self._pool.close(), 5.0)
        except (*_GONE, pg.PostgresError):
            self._pool.terminate()


async def _committed(connection: _Connection, xid: str) -> bool:
    """What became of transaction ``xid``; waits while its server process still has to end it."""
    while True:
        status = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", xid)
        if status != "in progress":
            return status == "committed"
        await clock.sleep(_PAUSE[0])


def _words(error: BaseException) -> str:
    """One line that says what went wrong, without the address or the password."""
    return " ".join(str(error).split()) or type(error).__name__
