"""What the verbs of the store know of a database: statements, transactions, and two engines behind one face.

What must live here: what both engines share. What must not: a driver (``sqlite``, ``postgres``: the only places that
know one, or branch on the engine).

SQL is built with SQLAlchemy Core, compiled once for the engine in use and executed on its raw driver. Work on the
store is written as ``async`` functions of a `Tx`, without other effects: an engine may run them again when their
transaction could not be carried through (docs/why/postgresql.md). So what a work reads and then relies on it locks: by
an UPDATE or ``FOR UPDATE`` of the row, a thread's before its run's before those of steps, messages and webhook calls.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

T = TypeVar("T")
Row = tuple[Any, ...]


class Compiled:
    """A statement in one engine's words: its text, the names of its parameters (in their order where the engine numbers
    them), the values of the literal ones, and which columns of its rows are texts."""

    __slots__ = ("defaults", "names", "sql", "texts")

    def __init__(self, expression: sa.ClauseElement, dialect: Dialect) -> None:
        compiled = cast(SQLCompiler, expression.compile(dialect=dialect))
        self.sql = str(compiled)
        self.names: tuple[str, ...] = tuple(compiled.positiontup or compiled.bind_names.values())
        self.defaults: dict[str, Any] = {
            name: bind.value for bind, name in compiled.bind_names.items() if not bind.required
        }
        columns = compiled._result_columns  # pyright: ignore[reportPrivateUsage]
        self.texts = [at for at, column in enumerate(columns) if isinstance(column.type, sa.String)]

    def given(self, params: dict[str, Any]) -> dict[str, Any]:
        """``params`` and the literal ones."""
        return {**self.defaults, **params} if self.defaults else params


class Statement:
    """A SQLAlchemy expression, compiled on first use; parameters are given by name at each execution.

    ``postgresql`` makes the expression for that engine where the two differ in more than words.
    """

    __slots__ = ("_compiled", "_expression", "_postgresql")

    def __init__(
        self, expression: sa.ClauseElement, *, postgresql: Callable[[], sa.ClauseElement] | None = None
    ) -> None:
        self._expression = expression
        self._postgresql = postgresql
        self._compiled: dict[str, Compiled] = {}

    def compiled(self, dialect: Dialect) -> Compiled:
        """The statement in the words of ``dialect``."""
        found = self._compiled.get(dialect.name)
        if found is None:
            own = self._postgresql if dialect.name == "postgresql" else None
            found = self._compiled[dialect.name] = Compiled(self._expression if own is None else own(), dialect)
        return found


def upsert(make: "Callable[[Callable[[sa.Table], Any]], sa.ClauseElement]") -> Statement:
    """An INSERT with an ON CONFLICT clause: both engines speak this form, SQLAlchemy has a function for each.

    ``make`` gets that function.
    """

    def on_postgresql() -> sa.ClauseElement:
        from sqlalchemy.dialects.postgresql import insert  # 80 ms that a server on SQLite does without

        return make(insert)

    return Statement(make(sqlite.insert), postgresql=on_postgresql)


def some_of(id: sa.ColumnElement[str], wanted: sa.Select[Any]) -> sa.ColumnElement[bool]:
    """The condition that ``id`` is one of those that ``wanted`` (with a limit) selects. Where rows have locks they are
    locked, and those that somebody else has locked are passed over, so that several nodes share the work.

    In a common table expression, which is worked out once: PostgreSQL may run a mere subquery again for each row that
    it joins, and then takes more rows than the limit.
    """
    picked = wanted.with_for_update(skip_locked=True).cte("picked")
    return id.in_(sa.select(picked.c.id))


class Tx(Protocol):
    """An open transaction."""

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """All rows of ``statement`` with ``params`` bound by name."""
        ...

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of ``statement``, or ``None``."""
        ...

    async def run(self, statement: Statement, **params: Any) -> int:
        """Execute a statement that returns no rows; answers how many rows it changed."""
        ...

    async def insert(self, statement: Statement, rows: list[dict[str, Any]]) -> None:
        """Execute an INSERT once for each of ``rows``."""
        ...

    def then(self, what: Callable[[], None]) -> None:
        """Call ``what`` when a `Database.write` that begins then sees what this transaction does, which a mere read may
        not yet; not at all if nothing of it is kept, but that may be known too late."""
        ...


Work = Callable[[Tx], Awaitable[T]]


class Database(Protocol):
    """A database of one of the two engines; belongs to one event loop."""

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on a consistent snapshot. It must be bounded: by a key, or by a page's limit."""
        ...

    async def look(self, work: Work[T]) -> T:
        """Like `read`, without the snapshot: each statement sees the newest commit. For what stays right then, such as
        a page, whose elements come from one statement and whose cursors never change."""
        ...

    async def rows(self, statement: Statement, **params: Any) -> list[Row]:
        """The rows of one reading statement."""
        ...

    async def row(self, statement: Statement, **params: Any) -> Row | None:
        """The first row of one reading statement, or ``None``."""
        ...

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction of its own and answer once it is on disk.

        What ``work`` raises is raised here and nothing of it is kept. Raises `StoreError` when the database refuses. A
        caller that is cancelled does not take its transaction back: it may have been committed.
        """
        ...

    async def close(self) -> None:
        """Wait for the writes under way, then close. Nothing may be written afterwards."""
        ...
