"""PostgreSQL, the engine for more than one machine: a bounded pool of connections, and what to do when one breaks.

What must live here: all that knows PostgreSQL's driver. What must not: tables or verbs.

A transaction that lost against another (a deadlock, a serialization failure) or whose connection broke is run again.
When the break came in the middle of the commit itself, the server is asked what became of it, so that nothing is done
twice and nothing is taken for done that is not (`_Mark`, docs/why/postgresql.md).
"""

import asyncio
import logging
import os
import random
import secrets
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
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
_CLOSE_SECONDS = 5.0
_CLOSED = "handler is closed"  # uvloop, when something is written to a connection that was reset a moment ago
_PAUSE = (0.02, 0.5)  # seconds between two attempts, growing from the first to the second
# What lost against somebody else and may win when it is done again; the last: a prepared statement, since a migration
# changed its table (the driver has thrown it away by then).
_LOST = (pg.TransactionRollbackError, pg.LockNotAvailableError, pg.InvalidCachedStatementError)
# What says that this connection is of no use any more, or that none can be had now.
BROKEN = (
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


# PostgreSQL's texts hold no NUL: it is stored as this pair of characters, and the first of them as another pair. The
# first is no character of any language (a noncharacter of Unicode), so hardly any text is changed at all.
_ESCAPE = "\ufdd0"


def escaped(text: str) -> str:
    """``text`` as it is stored in a text column."""
    if "\0" not in text and _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE, _ESCAPE + "1").replace("\0", _ESCAPE + "0")


def unescaped(text: str) -> str:
    """The text that `escaped` was given."""
    return text.replace(_ESCAPE + "0", "\0").replace(_ESCAPE + "1", _ESCAPE)


class _Connection(Protocol):
    """The part of an asyncpg connection that is used here, with types."""

    async def fetch(self, query: str, *args: Any) -> list[Row]: ...
    async def fetchrow(self, query: str, *args: Any) -> Row | None: ...
    async def fetchval(self, query: str, *args: Any) -> Any: ...
    async def execute(self, query: str, *args: Any) -> str: ...
    async def executemany(self, command: str, args: list[tuple[Any, ...]]) -> None: ...
    @property
    def mark(self) -> "_Mark": ...
    def terminate(self) -> None: ...


async def connect(given: Arguments, *, patient: bool = False, **settings: str) -> Any:
    """One asyncpg connection outside any pool, with ``settings`` of the server's in place of the usual ones.

    ``patient``: its statements may take as long as they take. Raises `StoreError`.
    """
    arguments: dict[str, Any] = {**given.connect, "server_settings": {**given.connect["server_settings"], **settings}}
    if patient:
        arguments["command_timeout"] = None
    try:
        connection = cast(Any, await asyncpg.connect(**arguments))  # pyright: ignore[reportUnknownMemberType]
    except (*BROKEN, pg.PostgresError, ValueError) as error:
        raise StoreError(f"cannot open the database {given.place}: {_words(error)}") from None
    await _tuner(given)(connection)
    return connection


def _tuner(given: Arguments) -> Callable[[Any], Awaitable[None]]:
    """What sets the options of a new connection's socket: the driver has no arguments for them."""

    async def tune(connection: Any) -> None:
        found = connection._transport.get_extra_info("socket")
        if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
            return
        # By another descriptor of the same socket: an event loop lends one that cannot be changed.
        with socket.socket(found.family, fileno=os.dup(found.fileno())) as same:
            for level, name, value in given.tcp:
                same.setsockopt(level, name, value)

    return tune


class _Mark:
    """A row of `writers` that one connection writes, and its number there.

    Every transaction begins by writing its number into the row, in the same message as its BEGIN. So its fate can be
    asked for when the answer to its COMMIT got lost, and whoever asks waits for it if it is not over.
    """

    __slots__ = ("number", "writer")

    def __init__(self) -> None:
        self.writer = secrets.token_hex(12)
        self.number = 0

    @property
    def prepare(self) -> str:
        """What to tell a new connection."""
        return (
            "PREPARE loomgate_begin (bigint) AS INSERT INTO writers (id, number, at)"  # noqa: S608 - an id of ours
            f" VALUES ('{self.writer}', $1, extract(epoch FROM now())::bigint)"
            " ON CONFLICT (id) DO UPDATE SET number = excluded.number, at = excluded.at"
        )

    @property
    def begin(self) -> str:
        """What begins the next transaction."""
        self.number += 1
        return f"BEGIN; EXECUTE loomgate_begin({self.number})"


_FATE = "SELECT number FROM writers WHERE id = $1 FOR UPDATE"
_FORGET = "DELETE FROM writers WHERE at < extract(epoch FROM now()) - 7 * 86400"


class _Plain(asyncpg.Connection):
    """A connection that goes back to the pool as it is: nothing of ours is left on it that would have to be reset."""

    __slots__ = ("mark",)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # pyright: ignore[reportUnknownMemberType]
        self.mark = _Mark()

    def get_reset_query(self) -> str:  # pyright: ignore[reportImplicitOverride]
        return ""


class _Unsure(Exception):
    """The connection broke in the middle of the commit of transaction ``number`` of ``writer``."""

    def __init__(self, writer: str, number: int) -> None:
        super().__init__(writer, number)
        self.writer = writer
        self.number = number


class _Tx:
    """An open transaction on a connection, or (`Database.look`) a connection without one."""

    __slots__ = ("_connection", "committed")

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.committed: list[Callable[[], None]] = []

    def then(self, what: Callable[[], None]) -> None:
        """Call ``what`` as soon as others see what this transaction does."""
        self.committed.append(what)

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """All rows of ``statement`` with ``params`` bound by name."""
        made = statement.compiled(DIALECT)
        return _read(await self._connection.fetch(made.sql, *_bound(made, params)), made)

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of ``statement``, or ``None``."""
        made = statement.compiled(DIALECT)
        row = await self._connection.fetchrow(made.sql, *_bound(made, params))
        return None if row is None else _read([row], made)[0]

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
    params = made.given(params)
    found = [params[name] for name in made.names]
    for at, value in enumerate(found):
        if value.__class__ is str and ("\0" in value or _ESCAPE in value):
            found[at] = escaped(value)
    return found


def _read(found: list[Row], made: Compiled) -> list[Row]:
    for row in found:
        for at in made.texts:
            value = row[at]
            if value is not None and _ESCAPE in value:
                return [tuple(unescaped(one) if one.__class__ is str else one for one in row) for row in found]
    return found


class PostgresDatabase:
    """A `Database` on a PostgreSQL server. `open` makes one."""

    def __init__(self, pool: Any, place: str, *, wait_seconds: float, retry_seconds: float) -> None:
        self._pool = pool
        self._place = place
        self._wait = wait_seconds
        self._retry = retry_seconds
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

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
        tune = _tuner(given)

        async def prepare(connection: Any) -> None:
            await tune(connection)
            await connection.execute(connection.mark.prepare)

        try:
            pool = await asyncpg.create_pool(  # pyright: ignore[reportUnknownMemberType]
                **given.connect,
                min_size=1,
                max_size=connections,
                max_inactive_connection_lifetime=300.0,
                connection_class=_Plain,
                init=prepare,
                statement_cache_size=1024,
                max_cached_statement_lifetime=0,
            )
        except (*BROKEN, pg.PostgresError, ValueError) as error:
            raise StoreError(f"cannot open the database {given.place}: {_words(error)}") from None
        database = cls(pool, given.place, wait_seconds=wait_seconds, retry_seconds=retry_seconds)
        await database._again(lambda connection: connection.execute(_FORGET))  # of connections long gone
        return database

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
                result = await work(_Tx(connection))
            except Exception:
                with suppress(*BROKEN):
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")
            return result

        return await self._apart(self._again(once))

    async def look(self, work: Work[T]) -> T:
        """See `Database.look`."""
        return await self._apart(self._again(lambda connection: work(_Tx(connection))))

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """The rows of one reading statement."""
        return await self._apart(self._again(lambda connection: _Tx(connection).rows(statement, **params)))

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of one reading statement, or ``None``."""
        return await self._apart(self._again(lambda connection: _Tx(connection).row(statement, **params)))

    async def write(self, work: Work[T]) -> T:
        """See `Database.write`."""
        return await self._apart(self._write(work))

    async def _apart(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` gives, in a task of its own: a caller that is cancelled would else break its connection off in
        the middle. It goes to its end, which time-outs bound, and nobody hears of it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone: then nobody else asks for it

    async def _write(self, work: Work[T]) -> T:
        result: list[T] = []
        committed: list[Callable[[], None]] = []

        async def once(connection: _Connection) -> T:
            nonlocal committed
            result.clear()
            tx = _Tx(connection)
            committed = tx.committed
            mark = connection.mark
            await connection.execute(mark.begin)
            try:
                result.append(await work(tx))
            except BaseException:
                with suppress(*BROKEN):
                    await connection.execute("ROLLBACK")
                raise
            try:
                done = await connection.execute("COMMIT")
            except BROKEN as error:
                raise _Unsure(mark.writer, mark.number) from error
            if done != "COMMIT":  # something in it had failed, and its error was passed over
                raise StoreError(f"the database {self._place} took a transaction back")
            return result[0]

        end = clock.monotonic() + self._retry
        while True:
            try:
                found = await self._again(once, end)
                break
            except _Unsure as unsure:
                # Asked for a little longer than work is tried again: not to know is worse than to fail.
                late = max(end, clock.monotonic() + self._retry)
                last = await self._again(lambda held, of=unsure.writer: held.fetchval(_FATE, of), late)
                if last == unsure.number:
                    found = result[0]
                    break
        for what in committed:
            what()
        return found

    async def _again(self, once: Callable[[_Connection], Awaitable[T]], end: float | None = None) -> T:
        """What ``once`` gives on a connection; tried again until the time ``end`` when that breaks or loses."""
        end = clock.monotonic() + self._retry if end is None else end
        if self._closed:
            raise StoreError(f"the database {self._place} is closed")
        pause, most = _PAUSE
        while True:
            try:
                async with self._connection() as connection:
                    return await once(connection)
            except (*_LOST, *BROKEN) as error:
                if isinstance(error, ValueError):  # a fault of ours: what was given does not fit its parameter
                    raise
                if self._closed or clock.monotonic() + pause >= end:
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
            reset = isinstance(error, RuntimeError) and _CLOSED in str(error)
            if reset or isinstance(error, (*BROKEN, _Unsure, asyncio.CancelledError, GeneratorExit)):
                with suppress(*BROKEN):  # the driver has noticed it itself; this must not hide what happened
                    held.terminate()  # whatever state it is in, nobody gets it again
            if reset:
                # Nothing was sent, so it may be sent again.
                raise ConnectionResetError("the connection was reset") from error
            raise
        finally:
            with suppress(*BROKEN):
                await self._pool.release(held)

    async def close(self) -> None:
        """See `Database.close`."""
        while self._running:
            await asyncio.wait(self._running)
        self._closed = True
        try:
            await asyncio.wait_for(self._pool.close(), _CLOSE_SECONDS)
        except (*BROKEN, pg.PostgresError):
            self._pool.terminate()


def _words(error: BaseException) -> str:
    """One line that says what went wrong, without the address or the password."""
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    words = " ".join(str(error).split())
    return words or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
