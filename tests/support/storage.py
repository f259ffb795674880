"""What a test's server stores its data in: SQLite's file and one process, or PostgreSQL and Redis as many nodes share.

A `conftest` takes the fixtures of this module by name to run every test below it on both: `storage`, `server`,
`make_server` and `process_server` for servers; `anyio_backend`, `database` and `store` for what has no server around
it. `at_rest` and `rows` look at what is stored without asking a server.
"""

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import apsw
import asyncpg
import pytest

from loomgate.settings import Secret, Settings
from loomgate.store import Store, schema
from loomgate.store.database import Database
from loomgate.store.postgres import PostgresDatabase
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from tests.support.engines import Databases
from tests.support.server import ProcessServer, Server, serving

T = TypeVar("T")

SEAL_KEY = "5e" * 32


def _await(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` from anywhere, also where an event loop is running."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(work)), name="storage")
    thread.start()
    thread.join()
    return found[0]


class Storage:
    """Makes storage for servers, all of the one engine. ``databases`` and ``redis_url``: with PostgreSQL alone."""

    def __init__(self, engine: Literal["sqlite", "postgresql"], databases: Databases | None, redis_url: str) -> None:
        self.engine = engine
        self._databases = databases
        self._redis_url = redis_url

    @contextmanager
    def new(self) -> Iterator[dict[str, Any]]:
        """New storage, removed on leaving: the fields of `Settings` that say where it is (and ``data`` besides)."""
        if self._databases is None:
            yield {}
            return
        url = _await(self._databases.ready())
        yield {
            "database_url": Secret(url),
            "redis_url": Secret(self._redis_url),
            "redis_prefix": f"test-{secrets.token_hex(4)}",
            "seal_key": Secret(SEAL_KEY),
        }
        _await(self._databases.drop(url))


def environment_of(fields: dict[str, Any]) -> dict[str, str]:
    """The environment variables that say what ``fields`` of `Settings` do."""
    return {
        f"LOOMGATE_{name.upper()}": value.reveal() if isinstance(value, Secret) else str(value)
        for name, value in fields.items()
    }


def where(settings: Settings) -> dict[str, str]:
    """The environment of a command that is to use the same storage."""
    given = ("database_url", "redis_url", "redis_prefix", "seal_key") if settings.postgres else ()
    return {"LOOMGATE_DATA": str(settings.data), **environment_of({name: getattr(settings, name) for name in given})}


# --- fixtures, for a conftest to take ---------------------------------------------------------------------------------


ENGINES = ["sqlite", "postgresql"]


def storage_of(request: pytest.FixtureRequest, engine: str) -> Storage:
    """Storage of ``engine``, for a session's fixture."""
    if engine == "sqlite":
        return Storage("sqlite", None, "")
    return Storage("postgresql", request.getfixturevalue("databases"), request.getfixturevalue("redis_url"))


@pytest.fixture(scope="session", params=ENGINES)
def storage(request: pytest.FixtureRequest) -> Storage:
    """Where the servers of a test have their data: each test runs on either."""
    return storage_of(request, request.param)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=ENGINES)
async def database(request: pytest.FixtureRequest, tmp_path: Path, databases: Databases) -> AsyncIterator[Database]:
    """A database of the test's own, with tables, of either engine."""
    if request.param == "sqlite":
        path = tmp_path / "loomgate.db"
        schema.prepare(path)
        database: Database = SqliteDatabase(path, synchronous="normal")
        yield database
        await database.close()
        return
    url = await databases.ready()
    database = await PostgresDatabase.open(url, connections=8)
    yield database
    await database.close()
    await databases.drop(url)


@pytest.fixture
async def store(database: Database) -> Store:
    """A store on `database`."""
    return Store(database, Sealer(bytes(32)), [], "reject")


@pytest.fixture(scope="session")
def server(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with API keys for all tests on that storage; take `client` to be alone on it."""
    data = tmp_path_factory.mktemp("server") / "data"
    with storage.new() as there, serving(data, key=True, **there) as made:
        yield made


@pytest.fixture
def make_server(storage: Storage, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers with settings of their own: ``make_server(run_ttl_seconds=5)``. They stop with the test."""
    with ExitStack() as stack:
        made = 0

        def make(**changes: Any) -> Server:
            nonlocal made
            made += 1
            there = stack.enter_context(storage.new())
            return stack.enter_context(serving(tmp_path / f"data{made}", **there, **changes))

        yield make


@pytest.fixture
def process_server(storage: Storage, tmp_path: Path) -> Iterator[Callable[..., ProcessServer]]:
    """Starts servers in processes of their own; keyword arguments are environment variables."""
    with ExitStack() as stack:
        started: list[ProcessServer] = []
        # Where there may be other nodes, nobody takes the runs of one that was killed before its leases are over.
        soon = {"lease_seconds": 2, "lease_renew_seconds": 0.5} if storage.engine == "postgresql" else {}

        def start(**environment: str) -> ProcessServer:
            there = stack.enter_context(storage.new())
            made = ProcessServer(tmp_path / f"data{len(started)}", environment_of({**there, **soon}) | environment)
            started.append(made)
            stack.callback(made.kill)
            made.start()
            return made

        yield start


# --- what is stored ----------------------------------------------------------------------------------------------


def at_rest(settings: Settings) -> bytes:
    """All that a server with these settings has stored: its files, and every value of its PostgreSQL database."""
    if settings.postgres:
        return _bytes_below(settings.data) + _await(_connected(settings.database_url.reveal(), _values))
    return _bytes_below(settings.database_path.parent)


async def at_rest_of(database: Database, folder: Path) -> bytes:
    """All that is stored in a `database` of these fixtures; ``folder`` is the test's own."""
    if isinstance(database, PostgresDatabase):
        async with database._pool.acquire() as connection:
            return await _values(connection)
    return _bytes_below(folder)


async def opened_again(database: Database, folder: Path, databases: Databases) -> Database:
    """The same database as another process has it; ``folder`` is the test's own."""
    if isinstance(database, PostgresDatabase):
        async with database._pool.acquire() as connection:
            name = await connection.fetchval("SELECT current_database()")
        return await PostgresDatabase.open(databases.named(name), connections=2)
    return SqliteDatabase(folder / "loomgate.db")


def _bytes_below(folder: Path) -> bytes:
    return b"\n".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


async def _values(connection: Any) -> bytes:
    """Every value in every table of a PostgreSQL database, one a line."""
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    found = [row for (name,) in tables for row in await connection.fetch(f'SELECT * FROM "{name}"')]  # noqa: S608
    assert found, "nothing is stored there"
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for row in found for value in row)


async def _connected(url: str, work: Callable[[Any], Awaitable[T]]) -> T:
    connection = await asyncpg.connect(url)
    try:
        return await work(connection)
    finally:
        await connection.close()


def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    """The rows of ``query``, which both engines understand, in the database of ``settings``."""
    if settings.postgres:
        found = _await(_connected(settings.database_url.reveal(), lambda connection: connection.fetch(query)))
        return [tuple(row) for row in found]
    connection = apsw.Connection(str(settings.database_path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return [tuple(row) for row in connection.execute(query)]
    finally:
        connection.close()
